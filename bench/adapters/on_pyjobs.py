"""pyjobs: jobs of one batch. The setting: lanes of the worker, or from 100 on jobs leased at once.

Negative: the asynchronous one.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager

import common
import psycopg

import pyjobs


def install(url):
    """The database has the schema already."""


def enqueue(url, jobs):
    with pyjobs.Client(url) as client:
        client.enqueue_jobs(common.QUEUE, [common.payload()] * jobs)


@contextmanager
def producer(url):
    with pyjobs.Client(url, prepare_threshold=5) as client:
        yield lambda payload: client.enqueue_job(common.QUEUE, params=payload)


def shape(setting):
    """The worker's options."""
    return {"max_jobs": setting} if setting >= 100 else {"concurrency": setting}


def work(url, tally, setting):
    if setting < 0:
        asyncio.run(_work_async(url, tally, -setting))
        return

    def handle(batch, _conn):
        tally.hit(batch.params["at"])

    with pyjobs.Client(url, prepare_threshold=5) as client:
        worker = pyjobs.Worker(client, handle, [common.QUEUE], **shape(setting), listen=True)
        tally.on_full = worker.stop
        worker.run()


async def _work_async(url, tally, setting):
    async def handle(batch, _conn):
        tally.hit(batch.params["at"])

    async with pyjobs.AsyncClient(url, prepare_threshold=5) as client:
        worker = pyjobs.AsyncWorker(client, handle, [common.QUEUE], **shape(setting), listen=True)
        tally.on_full = worker.stop
        await worker.run()


def left(url):
    with psycopg.connect(url) as conn:
        return conn.execute("select count(*) from pyjobs.job where finished_at is null").fetchone()[
            0
        ]


def other(action, url, options):
    """`rest`: so many workers that find nothing to do, until the process is ended."""
    if action != "rest":
        raise SystemExit(f"no action {action}")
    asyncio.run(_rest(url, options["workers"], listen=options["listen"]))


async def _rest(url, workers, *, listen):
    async def handle(_batch, _conn):
        """Never called."""

    async with pyjobs.AsyncClient(url, prepare_threshold=5) as client:
        running = [
            pyjobs.AsyncWorker(
                client,
                handle,
                [common.QUEUE],
                poll=30.0 if listen else 1.0,
                listen=listen,
                signals=False,
            ).run()
            for _ in range(workers)
        ]
        everything = asyncio.gather(*running)
        await asyncio.sleep(2)
        print("ready", flush=True)
        await everything


if __name__ == "__main__":
    common.main(sys.modules[__name__])
