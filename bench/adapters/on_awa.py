"""awa, with asynchronous handlers. The setting: workers of its queue, that is jobs at once."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import awa
import common


@dataclass
class Handle:
    at: float
    image: str


def install(url):
    with awa.Client(url) as client:
        client.migrate()
        # Its newer engine, which is active at once where there is nothing to move over.
        client.install_queue_storage()


def enqueue(url, jobs):
    with awa.Client(url) as client:
        client.enqueue_many_copy([Handle(**common.payload())] * jobs, queue=common.QUEUE)


@contextmanager
def producer(url):
    with awa.Client(url) as client:
        yield lambda payload: client.insert(Handle(**payload), queue=common.QUEUE)


def work(url, tally, setting):
    async def run():
        client = awa.AsyncClient(url, max_connections=20)
        full = asyncio.Event()
        loop = asyncio.get_running_loop()
        tally.on_full = lambda: loop.call_soon_threadsafe(full.set)

        @client.task(Handle, queue=common.QUEUE)
        async def handle(job):
            tally.hit(job.args.at)

        await client.start([(common.QUEUE, setting)])
        await full.wait()
        await client.shutdown()
        await client.close()

    asyncio.run(run())


def left(url):
    with awa.Client(url) as client:
        return sum(
            stat.total_queued + stat.running
            for stat in client.queue_stats()
            if stat.queue == common.QUEUE
        )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
