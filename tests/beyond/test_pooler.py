"""Behind a PgBouncer in transaction pooling: what goes through, and what says that it cannot.

The rest of the tests go through it too: `make test-pooler`; a share of them: `make pooler-share`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg_pool import ConnectionPool

import pyjobs
from pyjobs import JobStatus, embedded, migrate
from tests.support import direct, wait_until
from tests.support.pooler import Pooler

ROOT = Path(__file__).parents[2]

# As an operator would leave it: sessions are not reset, so that whatever is left there stays.
LAX = {"server_reset_query_always": "0", "server_reset_query": "", "default_pool_size": "2"}
KINDS = {"strict": {}, "lax": LAX, "in turn": {**LAX, "server_round_robin": "1"}}


@pytest.fixture(scope="module")
def server():
    with embedded.server(settings=embedded.THROWAWAY) as server:
        migrate.migrate(server.url(tcp=True))
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("create table public.result (item int)")
        yield server


@pytest.fixture(params=KINDS)
def pooler(request, server):
    with Pooler(server.url(tcp=True), KINDS[request.param]) as pooler:
        yield pooler


@pytest.fixture
def dsn(server, pooler):
    return pooler.through(server.url(tcp=True))


def test_every_test_that_goes_past_the_pooler_is_there():
    for name in [name for names in direct.DIRECT.values() for name in names]:
        file, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / "tests" / file).read_text()


def test_deploying_refuses_shared_sessions(server, dsn):
    for _ in range(3):
        with pytest.raises(migrate.MigrationError, match="in transaction mode"):
            migrate.migrate(dsn)


def test_deploying_refuses_shared_sessions_while_others_use_them(server, dsn):
    """Whichever of the sessions it is given."""
    with psycopg.connect(dsn, autocommit=True) as one, psycopg.connect(dsn) as two:
        for _ in range(5):
            one.execute("select 1")
            two.execute("select 1")
            two.rollback()
            with pytest.raises(migrate.MigrationError, match="in transaction mode"):
                migrate.migrate(dsn)


def test_deploying_goes_through_a_pooler_in_session_mode(server):
    with Pooler(server.url(tcp=True), {"pool_mode": "session"}) as pooler:
        assert migrate.migrate(pooler.through(server.url(tcp=True))) is not None


def test_the_command_line_says_so(dsn):
    done = subprocess.run(
        [sys.executable, "-m", "pyjobs", "migrate"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYJOBS_DATABASE_URL": dsn},
    )
    assert done.returncode != 0
    assert "transaction mode" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_statements_prepared_by_a_pool_of_ones_own_fail_and_the_error_says_what_to_do(dsn):
    """psycopg prepares by itself what is run for the sixth time."""
    with ConnectionPool(dsn, kwargs={"autocommit": True}, min_size=2, open=True) as pool:
        client = pyjobs.Client(pool)

        def use() -> None:
            with pool.connection() as one, pool.connection() as two:
                for conn in (one, two) * 30:
                    client.queue_stats(conn=conn)

        with pytest.raises(psycopg.Error) as info:
            use()
    assert info.value.sqlstate in {"26000", "42P05"}
    assert "prepare_threshold=None" in "".join(info.value.__notes__)


def test_the_worker_does_all_its_work(twin, server, dsn):
    """With heartbeats, and with LISTEN, which goes nowhere."""
    client = pyjobs.Client(dsn)
    job = client.enqueue_job("q", list(range(40)))

    async def handler(batch, conn):
        await conn.execute("insert into public.result values (%s)", batch.items)
        batch.count(seen=1)

    with client:
        worker = twin.worker(dsn, handler, "q", poll=0.05, lease=2, concurrency=2, listen=True)
        worker.start()
        try:
            client.wait(job, timeout=60)
            # What comes later is found by asking.
            later = client.wait(client.enqueue_job("q", [40, 41]), timeout=60)
        finally:
            worker.stop()
        assert later.status is JobStatus.SUCCESS
        (stage,) = client.job_progress(job).stages
        assert (stage.processed, stage.counters) == (40, {"seen": 40})
        assert client.audit_job() == []
    with psycopg.connect(server.url(), autocommit=True) as conn:
        rows = conn.execute("select item from public.result order by 1").fetchall()
        conn.execute("truncate public.result")
    assert [row[0] for row in rows] == list(range(42))


def test_a_pool_that_is_too_small_is_waited_for(twin, server, caplog):
    caplog.set_level(logging.WARNING, logger="pyjobs.worker")
    settings = {"default_pool_size": "1", "query_wait_timeout": "1"}

    async def handler(batch, conn):
        batch.count(seen=1)

    with (
        Pooler(server.url(tcp=True), settings) as pooler,
        pyjobs.Client(pooler.through(server.url(tcp=True))) as client,
        psycopg.connect(pooler.through(server.url(tcp=True))) as holder,
    ):
        job = client.enqueue_job("small", [1, 2, 3])
        holder.execute("select 1")  # and stays in its transaction
        with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
            client.enqueue_job("small")
        dsn = pooler.through(server.url(tcp=True))
        worker = twin.worker(dsn, handler, "small", poll=0.05).start()
        try:
            wait_until(lambda: "query_wait_timeout" in caplog.text, "the worker finds none", 60)
            holder.rollback()
            assert client.wait(job, timeout=60).status is JobStatus.SUCCESS
        finally:
            worker.stop()
        assert len(client.jobs(queue="small")) == 1
        client.purge_jobs(timedelta(0))
        assert client.audit_job() == []
