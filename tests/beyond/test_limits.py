"""No connection left, or no room on the disk: a clear error, nothing half done, and afterwards
work goes on by itself."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from pyjobs import embedded, migrate
from tests.support import wait_until
from tests.support.calls import Calls
from tests.support.rules import assert_rules

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE = {"retry_in": lambda _attempt: timedelta(0)}


def set_up(server: embedded.EmbeddedServer) -> str:
    """A database with jobs and a table of the application's, and its owner, who is nobody else."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(migrate.roles_sql().encode() or b"select 1")
        admin.execute("create role app login")
        admin.execute("create database app owner app")
    dsn = make_conninfo("", **conninfo_to_dict(server.url("app", "app")))
    migrate.migrate(dsn)
    with psycopg.connect(dsn) as conn:
        conn.execute("create table public.result (item int, filler text)")
    return dsn


@pytest.fixture
def look(dsn):
    """The owner's session; afterwards the rules must hold."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield Calls(conn)
        assert_rules(conn)


# Connections


class TestConnections:
    """A server of few connections, of which the tests can take the rest."""

    @pytest.fixture
    def server(self):
        settings = {**embedded.THROWAWAY, "max_connections": "14", "max_wal_senders": "0"}
        with embedded.server(settings=settings) as server:
            yield server

    @pytest.fixture
    def dsn(self, server):
        return set_up(server)

    @pytest.fixture
    def taken(self, dsn):
        """``taken()`` takes all connections that are left."""
        with contextlib.ExitStack() as stack:

            def take() -> contextlib.ExitStack:
                with contextlib.suppress(psycopg.OperationalError):
                    while True:
                        stack.enter_context(psycopg.connect(dsn, autocommit=True))
                return stack

            yield take

    def test_a_client_says_that_there_are_too_many(self, twin, dsn, look, taken):
        with twin.client(dsn, timeout=1) as client:
            client.enqueue_job("q")
            held = taken()
            # What it has it goes on with.
            client.enqueue_job("q")
            with client.connection(), pytest.raises(PoolTimeout, match=TOO_MANY):
                client.enqueue_job("q")
            with (
                twin.client(dsn) as another,
                pytest.raises(psycopg.OperationalError, match=TOO_MANY),
            ):
                another.enqueue_job("q")
            held.close()
            with client.connection():
                client.enqueue_job("q")
            assert len(client.jobs()) == 3

    def test_the_command_line_says_that_there_are_too_many(self, dsn, look, taken):
        taken()
        done = subprocess.run(
            [sys.executable, "-m", "pyjobs", "enqueue", "q"],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYJOBS_DATABASE_URL": dsn},
        )
        assert done.returncode != 0
        said = " ".join((done.stdout + done.stderr).split())
        assert "connection slots" in said or "too many clients" in said
        assert "Traceback" not in said

    def test_a_worker_waits_for_a_connection_and_goes_on(self, twin, dsn, look, taken, caplog):
        caplog.set_level(logging.WARNING, logger="pyjobs.worker")
        job = look.enqueue("q", items=40, max_attempts=1)

        async def handler(batch, conn):
            await conn.execute("insert into public.result values (%s)", batch.items)
            batch.count(seen=1)

        worker = twin.worker(
            f"{dsn} application_name=starved", handler, "q", poll=0.05, lease=3, **AT_ONCE
        ).start()
        try:
            for done in (5, 15):
                wait_until(
                    lambda done=done: look.progress(job)["stages"][0]["processed"] >= done,
                    f"{done} are done",
                    60,
                )
                # Its sessions are ended, and others are quicker to take their places.
                said = len(caplog.records)
                look.do(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'starved'"
                )
                held = taken()
                wait_until(
                    lambda said=said: starved(look) or any_says(caplog, said, "connection"),
                    "it finds none",
                    60,
                )
                held.close()
            wait_until(lambda: look.status(job) == "SUCCESS", "the job has ended", 60)
        finally:
            worker.stop()
        (stage,) = look.progress(job)["stages"]
        assert (stage["processed"], stage["failed"], stage["counters"]) == (40, 0, {"seen": 40})
        rows = look.rows("select item from public.result order by 1")
        assert [row["item"] for row in rows] == list(range(40))
        assert look.audit() == []


TOO_MANY = "connection slots|too many clients"


def starved(look: Calls) -> bool:
    count = look.value("select count(*) from pg_stat_activity where application_name = 'starved'")
    return bool(count == 0)


def any_says(caplog, since: int, word: str) -> bool:
    return any(word in record.getMessage() for record in caplog.records[since:])


# The disk


@pytest.fixture(scope="module")
def shim():
    """The library that makes a disk full, where every user can load it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed, to build what makes a disk full"
    place = embedded._Account.choose().temp_dir()
    with tempfile.TemporaryDirectory(prefix="pyjobs-full-", dir=place) as folder:
        Path(folder).chmod(0o755)
        library = Path(folder) / "full_disk.so"
        source = Path(__file__).parents[1] / "support" / "full_disk.c"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
        )
        yield library


class Disk:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, part: str) -> None:
        """Files below that folder of the server's can grow no more."""
        (self._folder / part).touch()

    def free(self) -> None:
        for flag in self._folder.glob("*"):
            if flag.name in {"base", "pg_wal"}:
                flag.unlink()


class TestDisk:
    @pytest.fixture
    def disk(self, shim, monkeypatch):
        made = embedded._environment

        def environment() -> dict[str, str]:
            return {**made(), "LD_PRELOAD": str(shim), "PYJOBS_FULL_DISK": str(shim.parent)}

        monkeypatch.setattr(embedded, "_environment", environment)
        disk = Disk(shim.parent)
        yield disk
        disk.free()

    @pytest.fixture
    def server(self, disk):
        settings = {
            **embedded.THROWAWAY,
            "autovacuum": "off",
            "max_wal_size": "64MB",
            "min_wal_size": "32MB",
            "wal_recycle": "off",
        }
        with embedded.server(settings=settings) as server:
            yield server

    @pytest.fixture
    def dsn(self, server):
        return set_up(server)

    def test_every_call_says_so_and_nothing_is_half_done(self, twin, dsn, look, disk):
        big = ["x" * 500]
        with twin.client(dsn) as client, psycopg.connect(dsn) as old:
            # The oldest snapshot: no room is made within the files either.
            old.execute("set transaction isolation level repeatable read")
            old.execute("select 1")
            work = client.enqueue_job("work", big * 4000, max_attempts=100)
            leased = client.claim_next_batch(work, "w", max_batches=2000)
            jobs = [work]
            claimed = [claim.batch_id for claim in leased]
            recorded = []
            disk.fill("base")

            def enqueue() -> None:
                jobs.append(client.enqueue_job("more", big))

            def claim() -> None:
                claimed.extend(c.batch_id for c in client.claim_next_batch(work, "w"))

            def record() -> None:
                lease = leased[len(recorded)]
                client.record_batch(lease.batch_id, lease.lease_epoch, counters={"seen": 1})
                recorded.append(lease.batch_id)

            def many_times(call: Callable[[], None]) -> None:
                for _ in range(1000):
                    call()

            def until_it_says_so() -> None:
                for call in (record, claim, enqueue):
                    with pytest.raises(psycopg.errors.DiskFull) as info:
                        many_times(call)
                    assert "No space left on device" in str(info.value)
                    assert info.value.diag.message_hint == "Check free disk space."

            until_it_says_so()
            # What was acknowledged, and nothing else.
            self.check(look, jobs, claimed, recorded)
            assert client.audit_job() == []
            until_it_says_so()
            disk.free()
            old.rollback()
            enqueue()
            claim()
            record()
            self.check(look, jobs, claimed, recorded)
            for lease in leased[len(recorded) :]:
                client.record_batch(lease.batch_id, lease.lease_epoch, counters={"seen": 1})
            (stage,) = client.job_progress(work).stages
            assert (stage.processed, stage.counters) == (2000, {"seen": 2000})
            assert client.audit_job() == []

    @staticmethod
    def check(look: Calls, jobs: list[int], claimed: list[int], recorded: list[int]) -> None:
        assert {row["id"] for row in look.rows("select id from pyjobs.job")} == set(jobs)
        states = look.rows("select id, state from pyjobs.batch where state <> 'pending'")
        assert {row["id"] for row in states} == set(claimed)
        assert {row["id"] for row in states if row["state"] == "recorded"} == set(recorded)

    def test_a_worker_waits_for_room(self, twin, dsn, look, disk, caplog):
        caplog.set_level(logging.WARNING, logger="pyjobs.worker")
        job = look.enqueue("q", items=60, max_attempts=2)

        async def handler(batch, conn):
            await conn.execute(
                "insert into public.result values (%s, %s)", [batch.items[0], "x" * 1500]
            )
            batch.count(seen=1)

        disk.fill("base")
        worker = twin.worker(dsn, handler, "q", poll=0.05, lease=20).start()
        try:
            wait_until(lambda: caplog.text.count("No space left") >= 8, "it finds no room", 60)
            assert look.status(job) in {"PENDING", "STARTED"}
            disk.free()
            wait_until(lambda: look.status(job) == "SUCCESS", "the job has ended", 90)
        finally:
            worker.stop()
        (stage,) = look.progress(job)["stages"]
        assert (stage["processed"], stage["failed"], stage["counters"]) == (60, 0, {"seen": 60})
        rows = look.rows("select item from public.result order by 1")
        assert [row["item"] for row in rows] == list(range(60))
        assert look.audit() == []

    def test_the_servers_end_for_want_of_room_for_its_log(self, twin, server, dsn, disk):
        """It goes down in the middle of something, and comes up when there is room again."""
        acknowledged = []
        with twin.client(dsn, timeout=1) as client:
            disk.fill("pg_wal")
            more = (client.enqueue_job("q", [secrets.token_hex(200_000)]) for _ in range(500))
            with pytest.raises(psycopg.OperationalError):
                acknowledged.extend(more)
            disk.free()
            wait_until(lambda: comes_up(server, dsn), "the server is there again", 60)
            found = [job.id for job in client.jobs(limit=1000)]
            assert set(acknowledged) <= set(found)
            # The one whose answer was lost.
            assert len(found) <= len(acknowledged) + 1
            (claim,) = client.claim_next_job("w", ["q"])
            assert client.record_batch(claim.batch_id, claim.lease_epoch).job_done
            assert client.audit_job() == []
        with psycopg.connect(dsn, autocommit=True) as conn:
            assert_rules(conn)


def comes_up(server: embedded.EmbeddedServer, dsn: str) -> bool:
    """As an operator, or a service manager, would see to it."""
    if server.pid is None:
        server.start()
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(dsn).close()
        return True
    return False
