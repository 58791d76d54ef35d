"""absurd with its asynchronous worker. The setting: its concurrency, and so its batch size."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import common
import psycopg
from absurd_sdk import Absurd, AsyncAbsurd

CONTROL = Path(sys.executable).with_name("absurdctl")


def install(url):
    subprocess.run([CONTROL, "init", "-d", url], check=True, stdout=sys.stderr)
    subprocess.run(
        [CONTROL, "create-queue", "-d", url, common.QUEUE], check=True, stdout=sys.stderr
    )


def enqueue(url, jobs):
    # It has no call for many at once.
    with producer(url) as spawn:
        for _ in range(jobs):
            spawn(common.payload())


@contextmanager
def producer(url):
    app = Absurd(url, queue_name=common.QUEUE)
    yield lambda payload: app.spawn("handle", payload, queue=common.QUEUE)
    app.close()


def work(url, tally, setting):
    async def run():
        app = AsyncAbsurd(url, queue_name=common.QUEUE)

        @app.register_task(name="handle")
        async def handle(params, _ctx):
            tally.hit(params["at"])

        tally.on_full = app.stop_worker
        await app.start_worker(concurrency=setting)
        await app.close()

    asyncio.run(run())


def left(url):
    with psycopg.connect(url) as conn:
        return conn.execute(
            f"select count(*) from absurd.t_{common.QUEUE} where state <> 'completed'"
        ).fetchone()[0]


if __name__ == "__main__":
    common.main(sys.modules[__name__])
