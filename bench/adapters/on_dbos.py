"""DBOS: a workflow without steps on a queue. The setting: the queue's worker_concurrency.

A queue polls every second by default; here every 50 ms, the quickest of what is usual.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager

import common
import psycopg
from dbos import DBOS, DBOSClient

POLL = 0.05


def system_url(url):
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def launch(url):
    DBOS(config={"name": "bench", "system_database_url": system_url(url), "log_level": "ERROR"})


def install(url):
    launch(url)
    DBOS.launch()
    DBOS.register_queue(common.QUEUE)
    DBOS.destroy()


def enqueue(url, jobs):
    # It has no call for many at once.
    with producer(url) as add:
        for _ in range(jobs):
            add(common.payload())


@contextmanager
def producer(url):
    client = DBOSClient(system_database_url=system_url(url), application_name="bench")
    options = {"queue_name": common.QUEUE, "workflow_name": "handle"}
    yield lambda payload: client.enqueue(options, payload)
    client.destroy()


def work(url, tally, setting):
    launch(url)

    @DBOS.workflow(name="handle")
    def handle(payload):
        tally.hit(payload["at"])

    DBOS.launch()
    DBOS.register_queue(
        common.QUEUE,
        worker_concurrency=setting,
        polling_interval_sec=POLL,
        on_conflict="always_update",
    )
    tally.full.wait()
    # The last ones are in their last commit.
    deadline = time.monotonic() + 30
    while left(url) and time.monotonic() < deadline:
        time.sleep(0.05)
    DBOS.destroy()


def left(url):
    with psycopg.connect(url) as conn:
        return conn.execute(
            "select count(*) from dbos.workflow_status"
            " where queue_name = %s and status <> 'SUCCESS'",
            [common.QUEUE],
        ).fetchone()[0]


if __name__ == "__main__":
    common.main(sys.modules[__name__])
