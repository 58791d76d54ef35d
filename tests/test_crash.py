"""Kill -9 of a worker and of the server: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pyjobs import embedded, migrate
from tests.support import wait_for_lock, wait_until
from tests.support.calls import Calls
from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]


@pytest.fixture
def calls(db, background, admin) -> Iterator[Session]:
    db.execute("create table public.result (batch_id bigint, worker text)")
    session = Session(db, background, admin)
    session.settable_clock()
    yield session
    assert_rules(db)


class Doomed:
    """A worker process, to be killed."""

    def __init__(self, dsn: str, job: int, stand: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.doomed", dsn, str(job), stand],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.batch_id, self.backend = map(int, self._process.stdout.readline().split())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def is_gone(self, admin: psycopg.Connection[Any]) -> None:
        """Wait until the server has noticed: a pooler may keep the session, but no transaction."""
        wait_until(
            lambda: (
                not admin.execute(
                    "select from pg_stat_activity where pid = %s and state <> 'idle'",
                    [self.backend],
                ).fetchall()
            ),
            "the killed worker's session or its transaction has ended",
        )


@pytest.fixture
def doomed(dsn) -> Iterator[Callable[[int, str], Doomed]]:
    started = []

    def start(job: int, stand: str) -> Doomed:
        started.append(Doomed(dsn, job, stand))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def result_rows(calls: Calls) -> list[int]:
    return [row["batch_id"] for row in calls.rows("select batch_id from public.result")]


@pytest.mark.parametrize("stand", ["claimed", "leased", "recorded"])
def test_a_killed_workers_batch_is_worked_again(calls, doomed, admin, stand):
    job = calls.enqueue(items=2)
    worker = doomed(job, stand)
    worker.kill()
    worker.is_gone(admin)
    assert result_rows(calls) == []
    if stand == "claimed":
        assert calls.status(job) == "PENDING"
    else:
        assert calls.progress(job)["stages"][0]["leased"] == 1
        calls.pass_time("2 minutes")
        assert [row["batch_id"] for row in calls.reap()] == [worker.batch_id]
    calls.finish(job)
    assert calls.ends_of(job) == ["SUCCESS"]


def test_a_finisher_who_is_killed_had_not_ended_the_job(calls, doomed, admin):
    """Another waits for it to be decided, and is the last one then."""
    job = calls.enqueue(items=2)
    worker = doomed(job, "recorded")
    (mine,) = calls.claim(job)
    record = calls.start(calls.record, mine)
    wait_for_lock(admin, calls.conn, worker.backend)
    worker.kill()
    assert not record.result(SOON)["job_done"]
    calls.pass_time("2 minutes")
    calls.reap()
    calls.finish(job)
    assert calls.ends_of(job) == ["SUCCESS"]


def test_a_finisher_who_is_killed_while_he_waits_strands_nobody(calls, doomed, admin, connect):
    job = calls.enqueue(items=2)
    (mine,) = calls.claim(job)
    other = Calls(connect())
    other.do("begin")
    other.record(mine)
    worker = doomed(job, "recording")
    wait_for_lock(admin, worker.backend, other.conn)
    worker.kill()
    other.do("commit")
    worker.is_gone(admin)
    assert result_rows(calls) == []
    assert calls.status(job) == "STARTED"
    calls.pass_time("2 minutes")
    calls.reap()
    calls.finish(job)
    assert calls.ends_of(job) == ["SUCCESS"]


def test_a_result_whose_answer_nobody_reads_counts_once(calls, doomed, admin, connect):
    """The server commits it after the worker is dead; posted again it is already recorded."""
    job = calls.enqueue(items=2)
    (mine,) = calls.claim(job)
    other = Calls(connect())
    other.do("begin")
    other.record(mine)
    worker = doomed(job, "answered")
    wait_for_lock(admin, worker.backend, other.conn)
    worker.kill()
    other.do("commit")
    worker.is_gone(admin)
    assert calls.ends_of(job) == ["SUCCESS"]
    with pytest.raises(psycopg.Error) as info:
        calls.record({"batch_id": worker.batch_id, "lease_epoch": 1})
    assert info.value.sqlstate == "PJ002"


def test_a_batch_that_kills_its_workers_costs_its_items_only(calls, doomed, admin):
    job = calls.enqueue(items=4, max_attempts=2)
    first = doomed(job, "leased")
    first.kill()
    first.is_gone(admin)
    calls.pass_time("2 minutes")
    assert [row["action"] for row in calls.reap()] == ["expired"]
    for batch in calls.claim(job, 3):  # it went to the end, behind those
        assert batch["batch_id"] != first.batch_id
        calls.record(batch)
    second = doomed(job, "leased")
    assert second.batch_id == first.batch_id
    second.kill()
    second.is_gone(admin)
    calls.pass_time("2 minutes")
    assert [row["action"] for row in calls.reap()] == ["failed"]
    assert calls.ends_of(job) == ["SUCCESS"]
    assert calls.progress(job)["stages"][0]["failed"] == 1


# The server


class Worker(threading.Thread):
    """Works a job until it is final, whatever happens; keeps what was acknowledged."""

    def __init__(self, name: str, dsn: str, job: int, acknowledged: list[tuple[int, int]]) -> None:
        super().__init__(name=name, daemon=True)
        self.errors: list[str] = []
        self._dsn = dsn
        self._job = job
        self._acknowledged = acknowledged
        self._random = random.Random(name)
        self.final = False

    def run(self) -> None:
        unsure: list[dict[str, Any]] = []  # recorded, and the answer was lost
        while not self.final:
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as conn:
                    self._work(Calls(conn), unsure)
            except psycopg.OperationalError:
                continue
            except Exception as error:  # noqa: BLE001  (the test shows it)
                self.errors.append(f"{type(error).__name__}: {error}")
                return

    def _work(self, calls: Calls, unsure: list[dict[str, Any]]) -> None:
        while True:
            while unsure:
                self._post(calls, unsure[-1])
                unsure.pop()
            batches = calls.claim(self._job, self._random.randint(1, 3), worker=self.name)
            for batch in batches:
                unsure.append(batch)
                self._post(calls, batch)
                unsure.pop()
            if not batches:
                status = calls.status(self._job)
                self.final = status in ("SUCCESS", "FAILURE", "REVOKED")
                if self.final:
                    return
                calls.rows("select * from pyjobs.reap_leases()")

    def _post(self, calls: Calls, batch: dict[str, Any]) -> None:
        try:
            calls.do("begin")
            calls.do("insert into public.result values (%s, %s)", batch["batch_id"], self.name)
            emits = [batch["batch_id"]] if batch["stage"] == "one" else None
            calls.record(batch, counters={"posted": 1}, next_items=emits)
            calls.do("commit")
        except psycopg.Error as error:
            if error.sqlstate not in ("PJ001", "PJ002"):
                raise
            calls.do("rollback")
            if error.sqlstate == "PJ001":  # taken from us while the server was away
                return
        self._acknowledged.append((batch["batch_id"], batch["lease_epoch"]))


def test_what_was_acknowledged_survives_the_servers_death():
    """Killed with SIGKILL again and again, whenever some more was acknowledged."""
    with embedded.server(settings=embedded.THROWAWAY) as server:
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("create database jobs")
        dsn = server.url("jobs")
        migrate.migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as conn:
            calls = Calls(conn)
            calls.do("create table public.result (batch_id bigint, worker text)")
            calls.settable_clock()
            job = calls.enqueue(items=80, max_attempts=100, stages=["one", "two"], barriers=["two"])
        acknowledged: list[tuple[int, int]] = []
        workers = [Worker(f"w{n}", dsn, job, acknowledged) for n in range(4)]
        for worker in workers:
            worker.start()
        for wanted in (10, 35, 60, 85, 110, 135):
            wait_until(
                lambda wanted=wanted: len(acknowledged) >= wanted or any(w.errors for w in workers),
                f"{wanted} results are acknowledged",
                timeout=60,
            )
            server.kill()
            server.restart()
            with psycopg.connect(dsn, autocommit=True) as conn:
                Calls(conn).pass_time("2 minutes")
        for worker in workers:
            worker.join(60)
        assert [w.errors for w in workers] == [[], [], [], []]
        assert all(w.final for w in workers)
        with psycopg.connect(dsn, autocommit=True) as conn:
            calls = Calls(conn)
            assert calls.status(job) == "SUCCESS"
            recorded = {
                (row["id"], row["lease_epoch"])
                for row in calls.rows("select * from pyjobs.batch where state = 'recorded'")
            }
            assert set(acknowledged) == recorded
            assert len(acknowledged) == len(set(acknowledged)) == 160
            rows = calls.rows("select batch_id from public.result")
            assert sorted(row["batch_id"] for row in rows) == sorted(x for x, _ in recorded)
            stages = calls.progress(job)["stages"]
            assert [s["counters"] for s in stages] == [{"posted": 80}, {"posted": 80}]
            assert [s["failed"] for s in stages] == [0, 0]
            assert_rules(conn)
