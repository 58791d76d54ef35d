"""pgqueuer with asyncpg and uvloop, as its documentation begins. The setting: its batch_size."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager

import asyncpg
import common
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def connect(url):
    return AsyncpgDriver(await asyncpg.connect(url))


def install(url):
    async def run():
        await Queries(await connect(url)).install()

    uvloop.run(run())


def enqueue(url, jobs):
    async def run():
        payload = json.dumps(common.payload()).encode()
        await Queries(await connect(url)).enqueue(
            [common.QUEUE] * jobs, [payload] * jobs, [0] * jobs
        )

    uvloop.run(run())


@contextmanager
def producer(url):
    loop = uvloop.new_event_loop()
    queries = Queries(loop.run_until_complete(connect(url)))
    yield lambda payload: loop.run_until_complete(
        queries.enqueue(common.QUEUE, json.dumps(payload).encode())
    )
    loop.close()


def work(url, tally, setting):
    async def run():
        pgq = PgQueuer(await connect(url))

        @pgq.entrypoint(common.QUEUE)
        async def handle(job):
            tally.hit(json.loads(job.payload)["at"])

        tally.on_full = pgq.shutdown.set
        await pgq.run(batch_size=setting)

    uvloop.run(run())


def left(url):
    async def run():
        return sum(stat.count for stat in await Queries(await connect(url)).queue_size())

    return uvloop.run(run())


if __name__ == "__main__":
    common.main(sys.modules[__name__])
