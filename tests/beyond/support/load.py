"""Processes that load a server from outside, and keep a ledger of what was acknowledged.

    python -m tests.beyond.support.load KIND JSON

The JSON has "dsn", "ledger" and "name", and what the kind needs besides. SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import structlog

import pyjobs
from tests.beyond.support.ledger import Ledger
from tests.support.calls import Calls
from tests.support.twins import Awaiting, run_now

ROOT = Path(__file__).resolve().parents[3]
FINAL = ("SUCCESS", "FAILURE", "REVOKED")
TABLES = """
    create table public.result (batch_id bigint, lease_epoch bigint, items int);
    create table public.ordered (name text primary key);
    create table public.bare (id int primary key, n bigint not null default 0);
    insert into public.bare select g from generate_series(1, 64) g;
"""


def outcome(items: list[Any], stage: str) -> tuple[list[int], list[Any] | None]:
    """Which items fail, and what goes to the next stage; told by the items alone."""
    failed = [at for at, item in enumerate(items) if item % 10 == 9]
    return failed, [item for item in items if item % 2 == 0] if stage == "one" else None


# -- workers by pyjobs.Worker


async def handle(batch: pyjobs.Batch, conn: Any) -> None:
    await conn.execute(
        "insert into public.result values (%s, %s, %s)",
        [batch.batch_id, batch.lease_epoch, len(batch.items)],
    )
    failed, emitted = outcome(list(batch.items), batch.stage)
    for index in failed:
        batch.fail(index, "a nine")
    batch.count(done=len(batch.items))
    if emitted:
        batch.emit(emitted)


def note_records(ledger: Ledger) -> None:
    """What the worker says in its log after the commit is what was acknowledged to it."""

    def note(_logger: Any, _method: str, event: Any) -> Any:
        if event["event"] == "batch recorded":
            ledger.write("recorded", batch=event["batch"], epoch=event["epoch"])
            raise structlog.DropEvent
        return event

    structlog.configure(
        processors=[note, structlog.processors.LogfmtRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def work(kind: str, dsn: str, ledger: Ledger, name: str, **options: Any) -> None:
    note_records(ledger)
    options = {"name": name, "poll": 0.1, "reap_every": 1, "lease": 10, **options}
    if kind == "sync":
        with pyjobs.Client(dsn) as client:
            pyjobs.Worker(
                client, lambda batch, conn: run_now(handle(batch, Awaiting(conn))), **options
            ).run()
        return

    async def run() -> None:
        async with pyjobs.AsyncClient(dsn) as client:
            await pyjobs.AsyncWorker(client, handle, **options).run()

    asyncio.run(run())


# -- everybody else: plain sessions that connect again


class Session:
    """Connects, calls a turn again and again, and connects again when the connection is lost."""

    def __init__(self, dsn: str, ledger: Ledger, name: str, **options: Any) -> None:
        self.ledger = ledger
        self.name = name
        self.options = options
        self.random = random.Random(name)
        self.stopping = threading.Event()
        self._dsn = dsn
        # asked, and the answer was lost: to be looked up first
        self.unsure: Any = None

    def run(self) -> None:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        while not self.stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as conn:
                    calls = Calls(conn)
                    while not self.stopping.is_set():
                        self.turn(calls)
            except psycopg.OperationalError as error:
                print(f"{time.monotonic():.3f} {error}", file=sys.stderr, flush=True)
                self.stopping.wait(0.01)

    def turn(self, calls: Calls) -> None:
        raise NotImplementedError


class RawWorker(Session):
    """Claims and records by SQL, with rows of its own."""

    def turn(self, calls: Calls) -> None:
        if self.unsure is not None:
            self._post(calls, self.unsure)
            self.unsure = None
        batches = calls.rows(
            "select * from pyjobs.claim_next_job(%s, %s, %s, '10 seconds')",
            self.name,
            ["default"],
            1,
        )
        if not batches:
            self.stopping.wait(0.02)
        for batch in batches:
            self.unsure = batch
            self._post(calls, batch)
            self.unsure = None
            self.stopping.wait(self.options.get("pause", 0))

    def _post(self, calls: Calls, batch: dict[str, Any]) -> None:
        items = batch["items"]
        failed, emitted = outcome(items, batch["stage"])
        try:
            calls.do("begin")
            calls.do(
                "insert into public.result values (%s, %s, %s)",
                batch["batch_id"],
                batch["lease_epoch"],
                len(items),
            )
            calls.record(batch, failed, {"done": len(items)}, emitted or None)
            calls.do("commit")
        except psycopg.Error as error:
            if error.sqlstate not in ("PJ001", "PJ002"):
                raise
            calls.do("rollback")
            if error.sqlstate == "PJ001":
                self.ledger.write("refused", batch=batch["batch_id"], epoch=batch["lease_epoch"])
                return
        self.ledger.write("recorded", batch=batch["batch_id"], epoch=batch["lease_epoch"])


class Producer(Session):
    """Starts jobs, each under a name of its own, and cancels some."""

    def turn(self, calls: Calls) -> None:
        if self._waiting(calls) > self.options.get("backlog", 30):
            self.stopping.wait(0.05)
            return
        if self.unsure is None:
            self.unsure = f"{self.name} {time.monotonic_ns()}"
        # After a lost answer: is it there?
        found = calls.rows("select id from pyjobs.job where name = %s", self.unsure)
        job = found[0]["id"] if found else self._order(calls, self.unsure)
        self.ledger.write("enqueued", job=job, name=self.unsure)
        self.unsure = None
        if self.random.random() < 0.1:
            # The last word about it, if it says so: nobody starts another run here.
            status = calls.value("select pyjobs.cancel_job(%s, 'load', '0')", job)
            if status == "REVOKED":
                self.ledger.write("revoked", job=job)

    @staticmethod
    def _waiting(calls: Calls) -> int:
        waiting: int = calls.value("select count(*) from pyjobs.job where finished_at is null")
        return waiting

    def _order(self, calls: Calls, name: str) -> int:
        """A job and a row of the application's, in one transaction."""
        stages = self.random.choice([["one", "two"], ["only"]])
        calls.do("begin")
        calls.do("insert into public.ordered values (%s)", name)
        job = calls.enqueue(
            items=[self.random.randrange(1000) for _ in range(self.random.randint(1, 12))],
            name=name,
            batch_size=self.random.choice([1, 2, 3]),
            max_attempts=20,
            stages=stages,
            barriers=stages[1:] if self.random.random() < 0.5 else [],
        )
        calls.do("commit")
        return job


class ClientProducer(Producer):
    """The same by pyjobs.Client, without a transaction of one's own."""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        with pyjobs.Client(self._dsn, max_size=2) as client:
            while not self.stopping.is_set():
                try:
                    self._turn(client)
                except psycopg.OperationalError as error:
                    print(f"{time.monotonic():.3f} {error}", file=sys.stderr, flush=True)
                    self.stopping.wait(0.01)

    def _turn(self, client: pyjobs.Client) -> None:
        if sum(s.waiting_jobs + s.running_jobs for s in client.queue_stats()) > 30:
            self.stopping.wait(0.05)
            return
        if self.unsure is None:
            self.unsure = f"{self.name} {time.monotonic_ns()}"
        found = client.jobs(name=self.unsure)
        if found:
            job = found[0].id
        else:
            items = [self.random.randrange(1000) for _ in range(self.random.randint(1, 12))]
            job = client.enqueue_job(
                "default", items, name=self.unsure, batch_size=2, max_attempts=20
            )
        self.ledger.write("enqueued", job=job, name=self.unsure)
        self.unsure = None


class Bare(Session):
    """The guarded update of one row, and nothing of pyjobs: what any client of the pair meets."""

    def turn(self, calls: Calls) -> None:
        row = self.options.get("row", 1)
        calls.do("update public.bare set n = n + 1 where id = %s and n >= 0", row)
        self.ledger.write("bare")


SESSIONS = {
    "raw": RawWorker,
    "producer": Producer,
    "client producer": ClientProducer,
    "bare": Bare,
}


def main() -> None:
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    options["ledger"] = Ledger(options["ledger"], options["name"])
    if kind in SESSIONS:
        SESSIONS[kind](**options).run()
    else:
        work(kind, **options)


class Load:
    """Such processes, started and ended together."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._folder = folder
        self.ledger = Ledger(folder / "ledger")
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, kind: str, name: str, **options: Any) -> None:
        given = {"dsn": self._dsn, "ledger": str(self.ledger.path), "name": name, **options}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._started[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.beyond.support.load", kind, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def pid(self, name: str) -> int:
        return self._started[name].pid

    def dead(self) -> list[str]:
        """Those that have ended, with what they said last."""
        return [
            f"{name} ended with {p.returncode}: {self.log(name)[-3000:]}"
            for name, p in self._started.items()
            if p.poll() is not None
        ]

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def end(self, *names: str, patience: float = 30) -> None:
        """By SIGTERM; and, where that does not do, for good."""
        chosen = {name: self._started.pop(name) for name in names or list(self._started)}
        for process in chosen.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
        for process in chosen.values():
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        for process in self._started.values():
            process.kill()
        for process in self._started.values():
            process.wait()
        self.ledger.close()


if __name__ == "__main__":
    main()
