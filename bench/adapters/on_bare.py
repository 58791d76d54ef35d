"""Bare PL/pgSQL through psycopg: bench/sql/bare.sql. The setting is how many jobs a claim takes."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import common
import psycopg
from psycopg.types.json import Jsonb


def connect(url):
    return psycopg.connect(url, autocommit=True)


def install(url):
    """The database has the tables already."""


def enqueue(url, jobs):
    with connect(url) as conn:
        conn.execute(
            "insert into bare.queue (payload) select %s from generate_series(1, %s)",
            [Jsonb(common.payload()), jobs],
        )


@contextmanager
def producer(url):
    with connect(url) as conn:
        yield lambda payload: conn.execute("select bare.enqueue(%s)", [Jsonb(payload)])


def work(url, tally, setting):
    with connect(url) as conn:
        conn.execute("listen bare_queue")
        while not tally.full.is_set():
            jobs = conn.execute("select id, payload from bare.claim(%s)", [setting]).fetchall()
            if not jobs:
                # One wake-up is enough; what came with it is claimed at once.
                for _ in conn.notifies(timeout=1, stop_after=1):
                    pass
                continue
            for _, payload in jobs:
                tally.hit(payload["at"])
            conn.execute("select bare.done(%s)", [[job[0] for job in jobs]])


def left(url):
    with connect(url) as conn:
        return conn.execute("select count(*) from bare.queue").fetchone()[0]


if __name__ == "__main__":
    common.main(sys.modules[__name__])
