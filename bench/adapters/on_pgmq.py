"""pgmq, by the SQL that its Python package ships and installs. The setting: messages a read.

A message that was read is archived, which is pgmq's way to keep it.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager

import common
import psycopg
from pgmq.install import get_embedded_install_sql
from psycopg.types.json import Jsonb


def connect(url):
    return psycopg.connect(url, autocommit=True)


def install(url):
    with connect(url) as conn:
        conn.execute(get_embedded_install_sql())
        conn.execute("select pgmq.create(%s)", [common.QUEUE])


def enqueue(url, jobs):
    with connect(url) as conn:
        conn.execute(
            "select count(*) from pgmq.send_batch(%s, %s)",
            [common.QUEUE, [Jsonb(common.payload())] * jobs],
        )


@contextmanager
def producer(url):
    with connect(url) as conn:
        yield lambda payload: conn.execute(
            "select * from pgmq.send(%s, %s)", [common.QUEUE, Jsonb(payload)]
        )


def work(url, tally, setting):
    with connect(url) as conn:
        while not tally.full.is_set():
            # Waits up to 1 second for a message, looking every 100 ms: pgmq's default.
            rows = conn.execute(
                "select msg_id, message from pgmq.read_with_poll(%s, 60, %s, 1)",
                [common.QUEUE, setting],
            ).fetchall()
            if rows:
                for _, message in rows:
                    tally.hit(message["at"])
                conn.execute(
                    "select pgmq.archive(%s, %s::bigint[])", [common.QUEUE, [r[0] for r in rows]]
                )


def left(url):
    with connect(url) as conn:
        return conn.execute("select queue_length from pgmq.metrics(%s)", [common.QUEUE]).fetchone()[
            0
        ]


if __name__ == "__main__":
    common.main(sys.modules[__name__])
