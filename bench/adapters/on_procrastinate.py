"""procrastinate with its psycopg connector and asynchronous tasks. The setting: its concurrency."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager, suppress

import common
import procrastinate


def make_app(url):
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))


def make_task(app, tally=None):
    @app.task(name="handle", queue=common.QUEUE)
    async def handle(at, image):  # noqa: ARG001 - what the job is about
        tally.hit(at)

    return handle


def install(url):
    async def run():
        app = make_app(url)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    asyncio.run(run())


def enqueue(url, jobs):
    async def run():
        app = make_app(url)
        async with app.open_async():
            await make_task(app).batch_defer_async(*[common.payload()] * jobs)

    asyncio.run(run())


@contextmanager
def producer(url):
    connector = procrastinate.SyncPsycopgConnector(conninfo=url)
    app = procrastinate.App(connector=connector)
    task = make_task(app)
    with app.open():
        yield lambda payload: task.defer(**payload)


def work(url, tally, setting):
    async def run():
        app = make_app(url)
        make_task(app, tally)
        loop = asyncio.get_running_loop()
        async with app.open_async():
            worker = asyncio.ensure_future(
                app.run_worker_async(
                    queues=[common.QUEUE], concurrency=setting, install_signal_handlers=False
                )
            )
            # Cancelling is how its documentation stops a worker that was given a task.
            tally.on_full = lambda: loop.call_soon_threadsafe(worker.cancel)
            with suppress(asyncio.CancelledError):
                await worker

    asyncio.run(run())


def left(url):
    async def run():
        app = make_app(url)
        async with app.open_async():
            jobs = await app.job_manager.list_queues_async(queue=common.QUEUE)
            return sum(stats["todo"] + stats["doing"] for stats in jobs)

    return asyncio.run(run())


if __name__ == "__main__":
    common.main(sys.modules[__name__])
