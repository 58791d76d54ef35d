"""Handlers that raise what nobody raises, end the process, fork, or meddle with the connection.

The batch is recorded once, or failed by its attempts with an error that can be read; the worker
goes on, or ends with a status that says so; nothing is lost, and nothing counts twice.

What a worker does when it is killed, suspended, or told to end: test_worker_life.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import pyjobs
from pyjobs import JobStatus
from tests.support import wait_until
from tests.support.calls import Calls
from tests.support.rules import assert_rules
from tests.test_worker import QUICK, store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def client(dsn, db):
    db.execute("create table public.result (item jsonb, batch_id bigint, attempt int)")
    with pyjobs.Client(dsn) as client:
        yield client


@pytest.fixture
def results(db):
    return lambda: [
        row[0] for row in db.execute("select item from public.result order by 1").fetchall()
    ]


@pytest.fixture
def notes(caplog):
    """The worker's log, as lines."""
    caplog.set_level(logging.INFO, logger="pyjobs.worker")
    return lambda: [record.getMessage() for record in caplog.records]


class Own(BaseException):
    """Of nobody's family."""


class Speechless(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class Huge(Exception):  # noqa: N818
    def __str__(self) -> str:
        return "x" * (20 << 20)


class Odd(Exception):  # noqa: N818
    def __str__(self) -> str:
        return "\0\ud800\x1b[2J%s\u202e"


def deep() -> None:
    deep()


def cancelled() -> None:
    raise asyncio.CancelledError


RAISED: dict[str, tuple[Any, str]] = {
    "exit": (SystemExit(3), "SystemExit: 3"),
    "interrupt": (KeyboardInterrupt(), "KeyboardInterrupt"),
    "own": (Own("mine"), "Own: mine"),
    "cancelled": (asyncio.CancelledError(), "CancelledError"),
    "group": (BaseExceptionGroup("many", [SystemExit(1), ValueError("no")]), "2 sub-exceptions"),
    "stop": (StopIteration(), "StopIteration"),
    "speechless": (Speechless(), "Speechless, and its text raises ValueError"),
    "huge": (Huge(), "Huge: xxxxxxxx"),
    "odd": (Odd(), "Odd: \ufffd?\x1b[2J%s\u202e"),
    "memory": (MemoryError(), "MemoryError"),
    "stale": (pyjobs.StaleLease("not really"), "StaleLease: not really"),
    "recorded": (pyjobs.AlreadyRecorded("not really"), "AlreadyRecorded: not really"),
}


@pytest.mark.parametrize("what", RAISED)
def test_whatever_a_handler_raises_fails_its_batch_and_nothing_else(
    twin, dsn, client, results, db, caplog, what
):
    # The lines would hold what pytest itself cannot hand on.
    caplog.set_level(logging.CRITICAL, logger="pyjobs.worker")
    raised, told = RAISED[what]

    async def handler(batch, conn):
        await store(batch, conn)
        if batch.items == ["bad"]:
            raise raised

    bad = client.enqueue_job("q", ["bad"], max_attempts=2, priority=1)
    good = client.enqueue_job("q", ["good"])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(good).status is JobStatus.SUCCESS
    progress = client.job_progress(bad)
    assert progress.status is JobStatus.FAILURE
    if what == "stop":  # a coroutine may not raise it: Python makes another of it
        told = "StopIteration"
    assert told in progress.errors[0].error
    assert db.execute("select attempt from pyjobs.batch where job_id = %s", [bad]).fetchone() == (
        2,
    )
    assert results() == ["good"]
    assert_rules(db)


def test_an_endless_recursion_is_an_error_like_others(twin, dsn, client, db):
    async def handler(batch, conn):
        deep()

    job = client.enqueue_job("q", [1], max_attempts=1)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert "RecursionError" in client.job_progress(job).errors[0].error


@pytest.mark.parametrize(
    "statement",
    [
        "commit",
        "rollback",
        "set transaction isolation level serializable",
        "set local role pyjobs_reader",
        "set local statement_timeout = '1ms'",
        "set local search_path = nowhere",
        "lock table pyjobs_internal.job in access exclusive mode",
        "select pg_terminate_backend(pg_backend_pid())",
        "deallocate all",
        "set constraints all deferred",
    ],
)
def test_a_handler_that_meddles_with_its_transaction_harms_its_batch_alone(
    twin, dsn, client, db, admin, cluster, statement
):
    """By plain statements, which psycopg does not see. Recorded once, or not at all."""
    admin.execute(f'grant pyjobs_reader to "{cluster.owner}"'.encode())

    async def handler(batch, conn):
        if batch.items == ["bad"]:
            await conn.execute(statement)
            return
        await store(batch, conn)

    bad = client.enqueue_job("q", ["bad"], max_attempts=1, priority=1)
    good = client.enqueue_job("q", ["good"])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(good).status is JobStatus.SUCCESS
    progress = client.job_progress(bad)
    assert progress.status.final
    if statement in {"commit", "rollback"}:
        assert "cannot be committed or rolled back" in progress.errors[0].error
    elif progress.status is JobStatus.FAILURE:
        assert progress.errors[0].error
    assert_rules(db)


def test_a_connection_that_is_used_after_its_batch_is_refused(
    twin,
    dsn,
    client,
    results,
    db,
):
    """It is back in the pool, and would write into the transaction of another batch."""
    kept = []
    said = []

    async def handler(batch, conn):
        await store(batch, conn)
        for old in kept:
            try:
                await old.execute("insert into public.result values ('\"late\"', 0, 0)")
            except RuntimeError as exc:
                said.append(str(exc))
        kept.append(conn)

    client.enqueue_job("q", [1, 2])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert results() == [1, 2]
    assert len(said) == 1
    assert "used after the batch has ended" in said[0]


def test_a_thread_that_outlives_its_handler_writes_nothing(dsn, client, results):
    go, over, said = threading.Event(), threading.Event(), []

    def late(conn):
        assert go.wait(30)
        try:
            conn.execute("insert into public.result values ('\"late\"', 0, 0)")
        except RuntimeError as exc:
            said.append(exc)
        over.set()

    def handler(batch, conn):
        threading.Thread(target=late, args=(conn,), daemon=True).start()

    client.enqueue_job("q", [1])
    with pyjobs.Client(dsn) as own:
        pyjobs.Worker(own, handler, ["q"], **QUICK).run(until_idle=True)
        go.set()
        assert over.wait(30)
    assert results() == []
    assert len(said) == 0 or "used after" in str(said[0])


@pytest.mark.parametrize(
    "text",
    ["repeat('[', 3000) || repeat(']', 3000)", "'[' || repeat('9', 5000) || ']'"],
    ids=["deep", "long"],
)
@pytest.mark.parametrize("where", ["items", "params"])
def test_a_job_that_python_cannot_read_ends_no_worker(
    twin,
    dsn,
    client,
    db,
    notes,
    text,
    where,
):
    """One such job ended every worker that claimed it."""

    async def handler(batch, conn):
        pass

    (bad,) = db.execute(
        f"select pyjobs.enqueue_job('q', {where} => ({text})::jsonb, max_attempts => 2,"
        " priority => 1, failure_threshold => 0)"
    ).fetchone()
    good = client.enqueue_job("q", ["good"])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(good).status is JobStatus.SUCCESS
    progress = client.job_progress(bad)
    assert progress.status is JobStatus.FAILURE
    assert "Python cannot read this JSON" in progress.errors[0].error
    assert any("Python cannot read" in line for line in notes())


@pytest.mark.parametrize(
    "result",
    [
        lambda batch: batch.emit([object()]),
        lambda batch: batch.emit(["\ud800"]),
        lambda batch: batch.emit([float("nan")]),
        lambda batch: batch.emit(["\0"]),
        lambda batch: batch.count(n=1.5),
        lambda batch: batch.count(n=-1),
        lambda batch: batch.count(n=2**63),
        lambda batch: batch.count(n="x"),
        lambda batch: batch.fail(5, "beyond"),
        lambda batch: batch.fail("0", "no index"),
        lambda batch: batch.fail(10**400, "far beyond"),
        lambda batch: batch.emit(json.loads("[" * 900 + "]" * 900)),
    ],
)
def test_a_result_that_is_none_fails_the_batch(twin, dsn, client, db, result):
    async def handler(batch, conn):
        if batch.stage == "a":
            result(batch)

    job = client.enqueue_job("q", [1], max_attempts=1, stages=["a", "b"])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(job).status.final
    assert Calls(db).audit() == []


# In a process of its own, by the command


@pytest.fixture
def work(dsn, db, tmp_path):
    """``work()``: a worker until it is idle; its exit status."""
    db.execute("create table public.result (item jsonb, attempt int)")

    def run(**environment: str) -> int:
        with (tmp_path / "log").open("wb") as log:
            return subprocess.run(
                [
                    *(sys.executable, "-m", "pyjobs", "worker"),
                    *("tests.support.hostile_handlers:handle", "--queue", "q", "--until-idle"),
                    *("--lease", "1 second", "--name", "w"),
                ],
                cwd=ROOT,
                env={**os.environ, "PYJOBS_DATABASE_URL": dsn, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log if not environment else subprocess.DEVNULL,
                timeout=120,
                check=False,
            ).returncode

    return run


@pytest.mark.parametrize(("item", "status"), [("exit", 3), ("abort", -6), ("kill", -9)])
def test_a_handler_that_ends_its_process_uses_up_its_attempts_and_no_more(work, db, item, status):
    calls = Calls(db)
    bad = calls.enqueue("q", [item], max_attempts=2, priority=1)
    good = calls.enqueue("q", ["good"])
    for _ in range(2):
        assert work() == status
        # Nobody is there to reap: the database has the lease's end.
        wait_until(lambda: calls.rows("select * from pyjobs.reap_leases()"), "the end of its lease")
    assert calls.status(bad) == "FAILURE"
    assert "lease" in calls.progress(bad)["errors"][0]["error"]
    assert work() == 0
    assert calls.status(good) == "SUCCESS"
    assert db.execute("select item from public.result").fetchall() == [("good",)]
    assert_rules(db)


@pytest.mark.parametrize(
    "item",
    ["fork", "fork_and_raise", "fork_and_leave", "close", "devour", "chdir", "thread", "environ"],
)
def test_a_worker_outlives_what_its_handler_does_to_the_process(work, db, item):
    calls = Calls(db)
    bad = calls.enqueue("q", [item], max_attempts=1, priority=1)
    good = calls.enqueue("q", ["good"])
    assert work() == 0
    assert calls.status(good) == "SUCCESS"
    if item == "devour":
        assert calls.progress(bad)["errors"][0]["error"] == "MemoryError: "
    else:
        # Once, though two processes came back from the handler.
        assert calls.status(bad) == "SUCCESS"
        rows = db.execute(
            "select count(*) from public.result where item = %s::jsonb", [f'"{item}"']
        )
        assert rows.fetchone() == (1,)
    assert_rules(db)


def test_a_handler_that_shouts_gigabytes_is_heard_out(work, db):
    calls = Calls(db)
    job = calls.enqueue("q", ["shout"], max_attempts=1)
    assert work(LOUD="1") == 0
    assert calls.status(job) == "SUCCESS"
