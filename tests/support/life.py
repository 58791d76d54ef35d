"""A worker in a process of its own, for tests that are rough with it.

    python -m tests.support.life sync|async JSON

The JSON has "dsn" and the worker's options. It says what happens in lines of JSON, and does what
an item tells it: "wait" until a line comes on standard input, "hold" the interpreter's lock until
then, send its own "thread" the signal to end and wait, or nothing. A row is written for each item
before.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyjobs
from tests.support.twins import Awaiting, run_now


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def line_in_loop() -> None:
    """Wait for a line, and let the event loop go on."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(0, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(0)
    os.read(0, 1)


async def line_in_thread() -> None:
    """Wait for a line."""
    os.read(0, 1)


async def handle(batch: pyjobs.Batch, conn: Any) -> None:
    for item in batch.items:
        await conn.execute(
            "insert into public.result values (%s::jsonb, %s)", [json.dumps(item), batch.attempt]
        )
        say(event="begun", batch=batch.batch_id, epoch=batch.lease_epoch)
        if item == "thread":
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        if item in {"wait", "thread"}:
            await (line_in_thread() if sys.argv[1] == "sync" else line_in_loop())
        elif item == "hold":
            # PyDLL keeps the interpreter's lock while the call lasts: no other thread runs.
            ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = json.loads(sys.argv[2])
    dsn = options.pop("dsn")
    if sys.argv[1] == "sync":
        with pyjobs.Client(dsn) as client:
            pyjobs.Worker(
                client, lambda batch, conn: run_now(handle(batch, Awaiting(conn))), **options
            ).run()
    else:

        async def work() -> None:
            async with pyjobs.AsyncClient(dsn) as client:
                await pyjobs.AsyncWorker(client, handle, **options).run()

        asyncio.run(work())
    say(event="ended")


class WorkerProcess:
    """Such a process."""

    def __init__(self, kind: str, dsn: str, log: Path, **options: Any) -> None:
        self.log = log
        options = {"dsn": dsn, "reap_every": None, "poll": 0.1, **options}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.life", kind, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).resolve().parent.parent.parent,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(20)}: {self.log.read_text()}"
        return dict(json.loads(line))

    def go_on(self) -> None:
        """Let the handler end that waits."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        return self.process.wait(40)

    def children(self) -> list[int]:
        """Its heartbeat process."""
        # Of each of its threads: any of them may have started it.
        lists = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for found in lists for pid in found.read_text().split()]

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


if __name__ == "__main__":
    main()
