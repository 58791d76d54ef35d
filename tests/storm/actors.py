"""The clients of a storm, each a process of its own that may be killed at any moment.

Producers, operators, workers that call the functions through psycopg, and workers of the package.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
import structlog

import pyjobs
from tests.storm.ledger import Ledger
from tests.support.calls import Calls
from tests.support.rules import FINAL, Watch
from tests.support.twins import Awaiting, run_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.calls import Row

QUEUES = ["red", "green", "blue"]
# Of small jobs, worked by those alone who record several in one transaction.
CROSSING = "crossing"
LEASE = "3 seconds"
# Refusals that belong to the game; everything else is trouble.
EXPECTED = {"PJ001", "PJ002", "PJ003", "PJ006"}
# How many jobs with work there may be before producers pause.
ENOUGH = 15
# Operators and observers look at so many of the latest jobs.
RECENT = 60


@dataclasses.dataclass(frozen=True)
class Post:
    """Where a process stands: its role, its name (with the number of its life), what it needs."""

    role: str
    name: str
    seed: str
    url: str
    ledger: str
    crossing: bool  # whether there is somebody for that queue


def live(post: Post) -> None:
    """The whole life of a process; exit status 1 where something happened that should not."""
    # That connections get lost is what it is about; the pools need not say so each time.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    threading.Thread(target=_follow_parent, daemon=True).start()
    actor = ROLES[post.role](post)
    try:
        actor.run()
    except BaseException:  # noqa: BLE001  (told to the ledger, and by the exit status)
        actor.ledger.trouble(traceback.format_exc(limit=-6))
        raise SystemExit(1) from None


def _follow_parent() -> None:
    """Who started the storm may be killed too; nobody goes on without him."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a batch comes to under a lease: the same whoever works it and however often."""

    batch_id: int
    lease_epoch: int
    job_id: int
    run: int
    failed: list[int]
    found: int | None
    emitted: list[str]

    @classmethod
    def of(
        cls,
        *,
        batch_id: int,
        lease_epoch: int,
        job_id: int,
        run: int,
        stage: str,
        params: Any,
        items: Sequence[Any],
        **_: Any,
    ) -> Result:
        rng = random.Random(f"{batch_id} {lease_epoch}")
        last = stage == params["stages"][-1]
        return cls(
            batch_id,
            lease_epoch,
            job_id,
            run,
            [n for n in range(len(items)) if rng.random() < params["bad"]],
            rng.choice([None, 0, *range(1, 10)]),
            []
            if last or rng.random() < 0.3
            else [f"{batch_id}.{lease_epoch}.{n}" for n in range(rng.randint(1, 3))],
        )

    @property
    def lease(self) -> tuple[int, int]:
        return self.batch_id, self.lease_epoch

    @property
    def counters(self) -> dict[str, int]:
        return {} if self.found is None else {"found": self.found}

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [{"index": index, "error": "storm"} for index in self.failed]

    @property
    def row(self) -> tuple[int, int, int, int, int]:
        """The application's row."""
        return *self.lease, self.job_id, self.run, self.found or 0

    def intend(self, ledger: Ledger) -> None:
        ledger.intend(
            "record",
            batch=self.batch_id,
            epoch=self.lease_epoch,
            job=self.job_id,
            run=self.run,
            failed=len(self.failed),
            found=self.found,
            emitted=len(self.emitted),
        )

    def acked(self, ledger: Ledger) -> None:
        ledger.acked("record", batch=self.batch_id, epoch=self.lease_epoch)

    def refuse(self, ledger: Ledger) -> None:
        ledger.refused("record", batch=self.batch_id, epoch=self.lease_epoch)


INSERT = (
    "insert into app.result (batch_id, lease_epoch, job_id, run, found) values (%s,%s,%s,%s,%s)"
)


class Actor:
    """Takes turns on a connection, and on another one when that is lost."""

    application = "storm"

    def __init__(self, post: Post) -> None:
        self.post = post
        self.rng = random.Random(post.seed)
        self.ledger = Ledger(post.ledger, post.name)
        self.stopping = threading.Event()
        self._numbers = 0

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        while not self.stopping.is_set():
            try:
                with psycopg.connect(
                    self.post.url,
                    autocommit=True,
                    prepare_threshold=None,
                    connect_timeout=10,
                    application_name=self.application,
                ) as conn:
                    calls = self.calls(conn)
                    while not self.stopping.is_set():
                        self._take_turn(calls)
            except psycopg.OperationalError as error:
                self._lost(error)
                self.pause(0.3)

    def calls(self, conn: psycopg.Connection[Any]) -> Calls:
        return Calls(conn)

    def turn(self, calls: Calls) -> None:
        raise NotImplementedError

    def pause(self, longest: float) -> None:
        self.stopping.wait(self.rng.uniform(0, longest))

    def token(self) -> str:
        """A name for something that is given to the database, never used again."""
        self._numbers += 1
        return f"{self.post.name}-{self._numbers}"

    def _take_turn(self, calls: Calls) -> None:
        try:
            self.turn(calls)
        except psycopg.OperationalError as error:
            if calls.conn.closed:
                raise
            if error.sqlstate == "40P01":
                self.ledger.count("deadlock told to a client")
            else:
                self._lost(error)
        except (psycopg.Error, pyjobs.Error) as error:
            if error.sqlstate in EXPECTED:
                self.ledger.count(f"refused {error.sqlstate}")
            else:
                self.ledger.trouble(f"{error.sqlstate} {error}")
        if calls.conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            calls.do("rollback")

    def _lost(self, error: psycopg.OperationalError) -> None:
        state = error.sqlstate
        # Behind a pooler the loss of the server's side is told as a protocol violation (08P01).
        if state is None or state[:2] in ("08", "53") or state in ("57P01", "57P02", "57P03"):
            self.ledger.count("connection lost")
        else:
            self.ledger.trouble(f"{state} {error}")


# -- producers


class Producer(Actor):
    """Starts jobs of every kind; adds, seals and releases."""

    application = "storm producer"

    def __init__(self, post: Post) -> None:
        super().__init__(post)
        self._unsealed: list[tuple[int, list[str]]] = []
        self._held: list[int] = []
        # to be asked for again: nobody knows whether it was done
        self._unsure: list[tuple[str, dict[str, Any]]] = []
        self._client = pyjobs.Client(post.url, max_size=1)

    def turn(self, calls: Calls) -> None:
        rng = self.rng
        if calls.value("select count(*) from pyjobs_internal.offer") > ENOUGH:
            self.pause(0.5)
            return
        kind = rng.choices(
            [
                "job",
                "jobs",
                "together",
                "add",
                "seal",
                "release",
                "client",
                "crossing",
                "sealed soon",
            ],
            [8, 2, 3, 3, 2, 2, 3, 3, 6],
        )[0]
        if kind == "jobs":
            self._enqueue_jobs(calls)
        elif kind == "together":
            self._together(calls)
        elif kind == "crossing" and self.post.crossing:
            self._enqueue(calls, queue=CROSSING, size=2)
        elif kind == "sealed soon":
            # while its last batches are being recorded
            self._enqueue(calls, queue=rng.choice(QUEUES), size=rng.randint(1, 4), seal=False)
            self.pause(0.3)
            job, _ = self._unsealed[-1]
            self._simple(calls, "seal_job", job)
            self._unsealed.pop()
        elif kind == "client":
            self._by_client()
        elif kind == "add" and self._unsealed:
            self._add(calls, *rng.choice(self._unsealed))
        elif kind == "seal" and self._unsealed:
            job, _ = self._unsealed[0]
            self._simple(calls, "seal_job", job)
            self._unsealed.pop(0)
        elif kind == "release" and self._held:
            self._simple(calls, "release_job", self._held[0])
            self._held.pop(0)
        else:
            self._enqueue(calls)
        # Some are never sealed, never released.
        del self._unsealed[:-6], self._held[:-6]
        self.pause(0.5)

    def _options(self) -> tuple[str, dict[str, Any]]:
        """A job's token, which is its name, and its options."""
        rng, token = self.rng, self.token()
        stages = ["one", "two", "three"][: rng.choice([1, 1, 1, 2, 2, 3])]
        size = rng.choice([None, 0, 1, 2, 3, 4, 6, 12, 24, 24])
        if rng.random() < 0.02:
            size = rng.randint(200, 900)
        options: dict[str, Any] = {
            "queue": rng.choice(QUEUES),
            "items": None if size is None else [f"{token}:{n}" for n in range(size)],
            "params": {"stages": stages, "bad": rng.choice([0, 0, 0.1, 0.3])},
            "batch_size": 5 if size and size > 99 else rng.choice([1, 1, 2, 3]),
            "priority": rng.choice([0, 0, 0, 0, 1]),
            "name": token,
            "failure_threshold": rng.choice([0, 0.3, 0.5, 1]),
            "max_attempts": rng.choice([1, 2, 3, 10, 10]),
            "stages": stages,
            "barriers": [stage for stage in stages[1:] if rng.random() < 0.5],
            "hold": rng.random() < 0.1,
            "seal": rng.random() < 0.8,
        }
        if rng.random() < 0.2:
            options["dedupe_key"] = f"key {rng.randint(1, 8)}"
        return token, options

    def _intend(self, token: str, options: dict[str, Any]) -> None:
        items = options["items"]
        self.ledger.intend(
            "enqueue",
            token=token,
            jobs=1,
            items=None if items is None else len(items),
            queue=options["queue"],
            key=options.get("dedupe_key"),
        )

    def _keep(self, job: int, options: dict[str, Any]) -> None:
        if "dedupe_key" in options:
            return  # it may be another one, with other stages
        if not options["seal"]:
            self._unsealed.append((job, options["stages"]))
        if options["hold"]:
            self._held.append(job)

    def _enqueue(
        self, calls: Calls, *, queue: str | None = None, size: int = 0, seal: bool = True
    ) -> None:
        """A job of any kind; with a queue, a small one of so many batches."""
        token, options = self._options()
        if queue is not None:
            options |= {"queue": queue, "items": [f"{token}:{n}" for n in range(size)]}
            options |= {"batch_size": 1, "priority": 0, "seal": seal, "hold": False}
            options.pop("dedupe_key", None)
        if self.rng.random() < 0.2:
            # not before; by the server's clock
            seconds = self.rng.uniform(0, 2)
            options["run_at"] = calls.value(
                "select clock_timestamp() + make_interval(secs => %s)", seconds
            )
        self._intend(token, options)
        job = calls.enqueue(**options)
        self.ledger.acked("enqueue", token=token, ids=[job])
        self._keep(job, options)

    def _by_client(self) -> None:
        """After a lost answer with a dedupe key it may simply be asked for again."""
        token, options = self._options()
        self._intend(token, options)
        while True:
            try:
                job = self._client.enqueue_job(**options)
                break
            except psycopg.OperationalError:
                if "dedupe_key" not in options or self.stopping.is_set():
                    raise
                self.ledger.count("enqueue repeated under its dedupe key")
                self.pause(0.3)
        self.ledger.acked("enqueue", token=token, ids=[job])
        self._keep(job, options)

    def _enqueue_jobs(self, calls: Calls) -> None:
        token, number = self.token(), self.rng.randint(2, 6)
        queue = self.rng.choice(QUEUES)
        params = [{"stages": ["process"], "bad": 0.1} for _ in range(number)]
        self.ledger.intend("enqueue", token=token, jobs=number, items=None, queue=queue, key=None)
        ids = calls.value(
            "select pyjobs.enqueue_jobs(%s, %s, name => %s)", queue, json.dumps(params), token
        )
        self.ledger.acked("enqueue", token=token, ids=ids)

    def _together(self, calls: Calls) -> None:
        """A job beside a row of the application's own: both, or none."""
        token, options = self._options()
        options.pop("dedupe_key", None)
        self._intend(token, options)
        calls.do("begin")
        calls.do("insert into app.purchase (token) values (%s)", token)
        job = calls.enqueue(**options)
        added = self._intend_items(job) if not options["seal"] else None
        if added:
            calls.value("select pyjobs.add_items(%s, %s)", job, json.dumps(added[1]))
        self.pause(0.02)
        if self.rng.random() < 0.2:
            self.ledger.undone("enqueue", token=token)
            if added:
                self.ledger.undone("items", token=added[0])
            calls.do("rollback")
            return
        calls.do("commit")
        self.ledger.acked("enqueue", token=token, ids=[job], row=True)
        if added:
            self.ledger.acked("items", token=added[0])
        self._keep(job, options)

    def _intend_items(self, job: int) -> tuple[str, list[str]]:
        token = self.token()
        items = [f"{token}:{n}" for n in range(self.rng.randint(1, 6))]
        self.ledger.intend("items", token=token, job=job, items=len(items))
        return token, items

    def _add(self, calls: Calls, job: int, stages: list[str]) -> None:
        token, items = self._intend_items(job)
        stage = self.rng.choice([None, *stages])
        calls.value("select pyjobs.add_items(%s, %s, %s)", job, json.dumps(items), stage)
        self.ledger.acked("items", token=token)

    def _simple(self, calls: Calls, call: str, job: int) -> None:
        self.ledger.intend(call, job=job)
        calls.value(f"select pyjobs.{call}(%s)", job)
        self.ledger.acked(call, job=job)


# -- workers


class Worker(Actor):
    """A worker in SQL: claims, and records in every way there is, its own rows beside."""

    application = "storm worker"

    def __init__(self, post: Post) -> None:
        super().__init__(post)
        self._leases: list[Row] = []
        # Posted, and the answer was lost: to be posted again, rows and all.
        self._unsure: list[Result] = []
        # Lost, forgotten or recorded long ago: to be posted late, or once more.
        self._old: list[Result] = []

    def turn(self, calls: Calls) -> None:
        rng = self.rng
        if self._unsure:
            self._post(calls, [self._unsure[-1]])
            return
        if self._old and rng.random() < 0.05:
            self._post(calls, [self._old.pop()])
            return
        if not self._leases:
            self._claim(calls)
            if not self._leases:
                self.pause(0.2)
            return
        if rng.random() < 0.02:  # forgotten, as if by a crash
            self._old.append(Result.of(**self._leases.pop()))
            return
        self._work(calls)

    def _claim(self, calls: Calls) -> None:
        name, rng = self.post.name, self.rng
        kind = rng.random()
        if kind < 0.6:
            rows = calls.rows(
                "select * from pyjobs.claim_next_job(%s, %s, %s, %s)",
                name,
                QUEUES,
                rng.randint(1, 4),
                LEASE,
            )
        elif kind < 0.8:
            rows = calls.rows("select * from pyjobs.claim_jobs(%s, %s, 4, %s)", name, QUEUES, LEASE)
        else:
            job = some_job(calls, rng, final=False)
            rows = [] if job is None else calls.claim(job, rng.randint(1, 3), worker=name,
                                                      lease=LEASE)  # fmt: skip
        self._leases += rows

    def _work(self, calls: Calls) -> None:
        rng = self.rng
        row = self._leases.pop(0)
        kind = rng.choices(
            ["record", "fused", "many", "each", "release", "extend", "roll back"],
            [10, 6, 4, 4, 1.5, 1, 1],
        )[0]
        lease = (row["batch_id"], row["lease_epoch"])
        self.pause(0.04)
        if kind == "release":
            calls.value(
                "select pyjobs.release_batch(%s, %s, %s, %s)",
                *lease,
                rng.choice([None, "storm"]),
                rng.choice(["0", "1 second"]),
            )
        elif kind == "extend":
            self._leases.insert(0, row)
            try:
                calls.rows("select * from pyjobs.extend_lease(%s, %s, %s)", *lease, LEASE)
            except psycopg.Error:
                self._leases.pop(0)
                raise
        elif kind == "roll back":
            result = Result.of(**row)
            result.intend(self.ledger)
            calls.do("begin")
            self._insert(calls, result)
            self._record(calls, result)
            calls.do("rollback")
            self._leases.append(row)
        elif kind == "fused":
            self._post(calls, [Result.of(**row)], fused=True)
        elif kind == "many":
            self._post_many(calls, row)
        else:
            results = [Result.of(**row)]
            if kind == "each":
                results += self._others(row)
            self._post(calls, results)

    def _others(self, row: Row) -> list[Result]:
        """More batches to be recorded in the same transaction: of the same job, in any order."""
        others = [x for x in self._leases if x["job_id"] == row["job_id"]][:3]
        self._leases = [x for x in self._leases if x not in others]
        self.rng.shuffle(others)
        return [Result.of(**x) for x in others]

    def _insert(self, calls: Calls, result: Result) -> None:
        calls.do(INSERT, *result.row)

    def _record(self, calls: Calls, result: Result) -> Row:
        row = calls.row(
            "select * from pyjobs.record_batch(%s, %s, %s, %s, %s)",
            *result.lease,
            json.dumps(result.failures),
            json.dumps(result.counters),
            json.dumps(result.emitted) if result.emitted else None,
        )
        row["run"] = result.run
        return row

    def _fused(self, calls: Calls, result: Result) -> list[Row]:
        return calls.rows(
            "select * from pyjobs.record_and_claim(%s, %s, %s, %s, %s, %s, 2, %s)",
            *result.lease,
            self.post.name,
            json.dumps(result.failures),
            json.dumps(result.counters),
            json.dumps(result.emitted) if result.emitted else None,
            LEASE,
        )

    def _post(self, calls: Calls, results: list[Result], *, fused: bool = False) -> None:
        """Record with the rows, in one transaction; remember what became of it."""
        for result in results:
            result.intend(self.ledger)
        if results[0] not in self._unsure:
            self._unsure += reversed(results)
        claimed: list[Row] = []
        told: list[Row] = []
        try:
            calls.do("begin")
            for result in results:
                self._insert(calls, result)
                if self.rng.random() < 0.1:  # recorded, undone, and recorded after all
                    calls.do("savepoint s")
                    self._record(calls, result)
                    calls.do("rollback to savepoint s")
                if fused:
                    rows = self._fused(calls, result)
                    claimed += [row for row in rows if row["batch_id"] is not None]
                else:
                    told.append(self._record(calls, result))
                self._linger()
            self._commit(calls, results)
        except psycopg.OperationalError:
            # Whatever became of it: _unsure knows. A deadlock is the server's doing, and the same.
            raise
        except psycopg.Error as error:
            calls.do("rollback")
            refused = results[0] if len(results) == 1 else None
            # Of several, each is posted by itself next, out of _unsure.
            if refused is not None:
                self._unsure.remove(refused)
                if error.sqlstate == "PJ002":
                    refused.acked(self.ledger)  # posted again after a lost acknowledgement, or late
                elif error.sqlstate == "PJ001":
                    refused.refuse(self.ledger)
            raise
        self._unsure = [x for x in self._unsure if x not in results]
        self._leases += claimed
        for row in told:
            if row["job_done"]:
                self.ledger.saw("status", job=row["job_id"], run=row["run"],
                                status=row["job_status"])  # fmt: skip
        if self.rng.random() < 0.05:
            self._old.append(results[0])
        del self._old[:-5]

    def _linger(self) -> None:
        """Stay in the transaction for a while, so that it meets others."""
        if self.rng.random() < 0.3:
            self.pause(0.06)

    def _commit(self, calls: Calls, results: Sequence[Result]) -> None:
        calls.do("commit")
        for result in results:
            result.acked(self.ledger)

    def _post_many(self, calls: Calls, row: Row) -> None:
        """The set-wise call tells a stale one and does not raise: rows follow what it recorded."""
        rows = [row, *self._leases[:5]]
        results = [Result.of(**x) for x in rows]
        results = [x for x in results if not x.emitted]  # it emits nothing
        chosen = {x.lease for x in results}
        self._leases = [x for x in [row, *self._leases]
                        if (x["batch_id"], x["lease_epoch"]) not in chosen]  # fmt: skip
        if not results:
            row = self._leases.pop(0)
            self._post(calls, [Result.of(**row)])
            return
        self.rng.shuffle(results)
        for result in results:
            result.intend(self.ledger)
        self._unsure += results
        calls.do("begin")
        outcomes = calls.rows(
            "select * from pyjobs.record_batches(%s::bigint[], %s::bigint[], %s, %s)",
            [x.batch_id for x in results],
            [x.lease_epoch for x in results],
            json.dumps([x.failures for x in results]),
            json.dumps([x.counters for x in results]),
        )
        done = [x for x, told in zip(results, outcomes, strict=True)
                if told["outcome"] == "recorded"]  # fmt: skip
        for result in done:
            self._insert(calls, result)
        self._linger()
        self._commit(calls, done)
        self._unsure = [x for x in self._unsure if x not in results]
        for result, told in zip(results, outcomes, strict=True):
            if told["outcome"] == "stale":
                result.refuse(self.ledger)


class Tagged(Calls):
    """Says in each statement who it is: a deadlock in the server's log shows it."""

    def rows(self, query: str, *arguments: Any) -> list[Row]:
        return super().rows(f"/* crossing */ {query}", *arguments)

    def do(self, query: str, *arguments: Any) -> None:
        super().do(f"/* crossing */ {query}", *arguments)


class CrossingWorker(Worker):
    """Records batches of several jobs in one transaction, in any order, as a caller may.

    Two of them can wait for each other. The server ends one, which posts again.
    """

    application = "storm crossing"

    def calls(self, conn: psycopg.Connection[Any]) -> Calls:
        return Tagged(conn)

    def _claim(self, calls: Calls) -> None:
        self._leases += calls.rows(
            "select * from pyjobs.claim_jobs(%s, %s, 6, %s)", self.post.name, [CROSSING], LEASE
        )

    def turn(self, calls: Calls) -> None:
        if not self._leases and not self._unsure:
            self.pause(1.5)  # so that there are several jobs to choose from
        super().turn(calls)

    def _linger(self) -> None:
        self.pause(0.2)

    def _work(self, calls: Calls) -> None:
        mine, self._leases = self._leases, []
        self.rng.shuffle(mine)
        self._post(calls, [Result.of(**row) for row in mine])


class StormError(Exception):
    """A handler's own failure."""


class PackageWorker(Actor):
    """The package's worker, with a handler that writes rows in the recording transaction."""

    twin: ClassVar[str] = "sync"

    def run(self) -> None:
        structlog.configure(processors=[self._hear])
        options: dict[str, Any] = {
            "concurrency": self.rng.choice([1, 2, 3]),
            "max_batches": self.rng.choice([1, 2]),
            "lease": 3.0,
            "name": self.post.name,
            "poll": 0.2,
            "drain_timeout": 10.0,
            "reap_every": 2.0,
            "retry_in": lambda _: timedelta(seconds=self.rng.uniform(0, 1)),
        }
        if self.twin == "sync":
            with pyjobs.Client(self.post.url) as client:
                pyjobs.Worker(
                    client,
                    lambda batch, conn: run_now(self._handle(batch, Awaiting(conn))),
                    QUEUES,
                    **options,
                ).run()
        else:

            async def work() -> None:
                async with pyjobs.AsyncClient(self.post.url) as client:
                    await pyjobs.AsyncWorker(client, self._handle, QUEUES, **options).run()

            asyncio.run(work())

    async def _handle(self, batch: pyjobs.Batch, conn: Any) -> None:
        claim = batch.claim
        result = Result.of(**{f.name: getattr(claim, f.name) for f in dataclasses.fields(claim)})
        await self._think(self.rng.uniform(0, 0.08))
        if self.rng.random() < 0.02:
            raise StormError("storm: before")
        result.intend(self.ledger)
        await conn.execute(INSERT, result.row)
        for index in result.failed:
            batch.fail(index, "storm")
        batch.count(**result.counters)
        if result.emitted:
            batch.emit(result.emitted)
        await self._think(self.rng.uniform(0, 0.02))
        if self.rng.random() < 0.02:
            raise StormError("storm: after")

    async def _think(self, seconds: float) -> None:
        if self.twin == "sync":
            time.sleep(seconds)  # noqa: ASYNC251  (run_now: nothing else runs on it)
        else:
            await asyncio.sleep(seconds)

    def _hear(self, _logger: Any, _method: str, event: Any) -> Any:
        """The worker's log is how it acknowledges."""
        name, lease = event["event"], {"batch": event.get("batch"), "epoch": event.get("epoch")}
        if name == "batch recorded":
            self.ledger.acked("record", **lease)
            if "acknowledgement" in event:
                self.ledger.count("worker: acknowledgement lost, and found recorded")
        elif name == "result refused" and event["sqlstate"] == "PJ001":
            self.ledger.refused("record", **lease)
        elif name == "batch failed" and not str(event["error"]).startswith("StormError"):
            self.ledger.trouble(f"worker: {name}: {event['step']} {event['error']}")
        self.ledger.count(f"worker: {name}")
        raise structlog.DropEvent


class AsyncPackageWorker(PackageWorker):
    twin = "async"


# -- operators and observers


def some_job(calls: Calls, rng: random.Random, *, final: bool | None = None) -> int | None:
    """One of the latest jobs; of those that are final, or are not, where that is asked for."""
    which = "" if final is None else f"where finished_at is {'not ' if final else ''}null"
    rows = calls.rows(f"select id from pyjobs_internal.job {which} order by id desc limit {RECENT}")
    return rng.choice(rows)["id"] if rows else None


class Operator(Actor):
    """Cancels, ends, retries, sets aside, pauses, at random; commits, or thinks better of it."""

    application = "storm operator"

    def turn(self, calls: Calls) -> None:
        rng = self.rng
        self.pause(0.3)
        kind = rng.choices(
            ["cancel", "finalize", "force", "aside", "pause", "priority", "retry", "reap", "queue"],
            [10, 6, 2, 6, 6, 5, 14, 6, 2],
        )[0]
        # Mostly where it can do something.
        final = None if rng.random() < 0.2 else kind == "retry"
        job = some_job(calls, rng, final=final)
        if job is None:
            return
        token = self.token()
        if kind == "cancel":
            grace = rng.choice(["0", "0", "1 second", "3 seconds"])
            self._do(calls, "cancel", job, token,
                     "select pyjobs.cancel_job(%s, %s, %s)", job, token, grace)  # fmt: skip
        elif kind == "finalize":
            self._do(calls, "finalize", job, token,
                     "select transitioned from pyjobs.finalize_job(%s)", job)  # fmt: skip
        elif kind == "force":
            self._do(
                calls,
                "force",
                job,
                token,
                "select transitioned from pyjobs.finalize_job(%s, %s, %s)",
                job,
                rng.choice(sorted(FINAL)),
                token,
            )
        elif kind == "aside":
            status = calls.value("select status from pyjobs.job where id = %s", job)
            if status == "UNKNOWN":
                to = rng.choice(["RETRY", "RETRY", "FAILURE"])
                self._do(calls, "resolve", job, token,
                         "select pyjobs.resolve_job(%s, %s, %s)", job, to, token)  # fmt: skip
            else:
                self._do(calls, "quarantine", job, token,
                         "select pyjobs.quarantine_job(%s, %s)", job, token)  # fmt: skip
        elif kind == "pause":
            call = rng.choice(["pause", "resume", "resume"])
            self._do(calls, call, job, token, f"select pyjobs.{call}_job(%s)", job)
        elif kind == "queue":
            queue = rng.choice(QUEUES)
            calls.do("select pyjobs.pause_queue(%s)", queue)
            self.pause(0.2)
            for each in QUEUES:
                calls.do("select pyjobs.resume_queue(%s)", each)
        elif kind == "priority":
            self._do(calls, "priority", job, token,
                     "select pyjobs.set_priority(%s, %s)", job, rng.randint(0, 2))  # fmt: skip
        elif kind == "retry":
            self._do(calls, "retry", job, token,
                     "select pyjobs.retry_job(%s, %s)", job, rng.random() < 0.5)  # fmt: skip
        else:
            for row in calls.rows(
                "select * from pyjobs.reap(%s, %s)",
                rng.choice([None, "30 seconds"]),
                rng.random() < 0.2,
            ):
                self.ledger.count(f"reap: {row['action']}")

    def _do(
        self, calls: Calls, kind: str, job: int, token: str, query: str, *arguments: Any
    ) -> None:
        """One call in a transaction that also reads what it made of the job."""
        self.ledger.intend("op", kind=kind, job=job, token=token)
        calls.do("begin")
        answer = calls.value(query, *arguments)
        after = calls.row("select run, status from pyjobs.job where id = %s", job)
        self.pause(0.02)
        if self.rng.random() < 0.15:
            self.ledger.undone("op", kind=kind, job=job, token=token)
            calls.do("rollback")
            return
        calls.do("commit")
        self.ledger.acked(
            "op", kind=kind, job=job, token=token, answer=answer, run=after["run"],
            status=after["status"],
        )  # fmt: skip
        self.ledger.saw("status", job=job, **after)


class Observer(Actor):
    """Reads all the time: nothing may disagree or go backwards, and what is final stays so."""

    application = "storm observer"

    def __init__(self, post: Post) -> None:
        super().__init__(post)
        self._watch = Watch()
        self._told: set[tuple[int, int, str]] = set()

    def turn(self, calls: Calls) -> None:
        self.pause(1)
        jobs = calls.rows(
            "select id, run, status, finished_at, pyjobs.job_progress(id) as document "
            f"from pyjobs.job order by id desc limit {RECENT}"
        )
        for row in jobs:
            for text in self._watch.look(row):
                self.ledger.trouble(f"seen meanwhile: job {row['id']}: {text}")
            key = (row["id"], row["run"], row["status"])
            if row["status"] in (*FINAL, "CANCELING") and key not in self._told:
                self._told.add(key)
                at = row["finished_at"]
                self.ledger.saw("status", job=row["id"], run=row["run"], status=row["status"],
                                at=at and at.isoformat())  # fmt: skip
        for row in self.rng.sample(jobs, min(5, len(jobs))):
            for wrong in calls.audit(row["id"]):
                self.ledger.trouble(f"audit_job meanwhile: {wrong}")
            calls.explain(row["id"])
            calls.history(row["id"])
        calls.rows("select * from pyjobs.queue_stats()")
        calls.rows("select * from pyjobs.active_workers()")
        self.ledger.count("observations")


ROLES: dict[str, type[Actor]] = {
    "producer": Producer,
    "worker": Worker,
    "crossing": CrossingWorker,
    "package": PackageWorker,
    "async-package": AsyncPackageWorker,
    "operator": Operator,
    "observer": Observer,
}
