"""A worker may be killed, suspended, busy, told to end, or lose its server: nothing is lost, and
nothing counts twice.

Each test runs with the synchronous and the asynchronous worker, in a process of its own.
"""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pyjobs
from pyjobs import JobStatus, embedded, migrate
from tests.support import wait_until
from tests.support.life import WorkerProcess
from tests.support.proxy import Proxy
from tests.support.twins import AsyncTwin, SyncTwin


@pytest.fixture(params=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture
def client(dsn, db):
    db.execute("create table public.result (item jsonb, attempt int)")
    with pyjobs.Client(dsn) as client:
        yield client


@pytest.fixture
def start(kind, dsn, tmp_path):
    """``start(to, **options)``: such a process, killed at the end of the test."""
    started = []

    def start_one(to=dsn, **options):
        options = {"name": "w1", "queues": ["q"], **options}
        process = WorkerProcess(kind, to, tmp_path / f"log{len(started)}", **options)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.end()


@pytest.fixture
def results(db):
    return lambda: db.execute("select item, attempt from public.result order by 1, 2").fetchall()


def expiry(db):
    return db.execute("select lease_expires_at from pyjobs.batch").fetchone()[0]


def is_over(db):
    return db.execute("select lease_expires_at < clock_timestamp() from pyjobs.batch").fetchone()[0]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Ended, and not yet taken notice of by its parent.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def take_over(client):
    """Do as another worker would: reap, claim, record."""
    (reaped,) = client.reap_leases()
    (claim,) = client.claim_next_job("other", ["q"])
    assert claim.batch_id == reaped.batch_id
    client.record_batch(claim.batch_id, claim.lease_epoch, counters={"by_other": 1})
    return claim


def test_a_killed_workers_batch_is_worked_by_another(start, client, db, results):
    job = client.enqueue_job("q", ["wait"])
    worker = start(lease=2)
    worker.hear()
    (heartbeat,) = worker.children()
    os.kill(worker.pid, signal.SIGKILL)
    # With nobody there to keep it, the lease runs out.
    wait_until(lambda: not is_alive(heartbeat), "the heartbeat has ended with its worker")
    wait_until(lambda: is_over(db), "the lease is over")
    claim = take_over(client)
    assert claim.attempt == 2
    assert client.job(job).status is JobStatus.SUCCESS
    assert results() == []


def test_a_suspended_workers_late_result_is_refused_with_its_rows(start, client, db, results):
    job = client.enqueue_job("q", ["wait"])
    worker = start(lease=2)
    worker.hear()
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: is_over(db), "the lease is over, for a stopped worker keeps none")
    take_over(client)
    os.kill(worker.pid, signal.SIGCONT)
    worker.go_on()
    # It goes on: what it does next counts.
    client.wait(client.enqueue_job("q", ["more"]), timeout=20)
    assert results() == [("more", 1)]
    assert db.execute("select sqlstate, class, detail from pyjobs.refused").fetchall() == [
        ("PJ001", "suspicious", "worker w1")
    ]
    (stage,) = client.job_progress(job).stages
    assert (stage.processed, stage.counters) == (1, {"by_other": 1})


def test_a_worker_suspended_and_resumed_in_time_goes_on(start, client, db, results):
    job = client.enqueue_job("q", ["wait"])
    worker = start(lease=2)
    worker.hear()
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: is_over(db), "the lease is over")
    os.kill(worker.pid, signal.SIGCONT)
    # Nobody took it: it is extended again, and recorded.
    wait_until(lambda: not is_over(db), "the lease is kept again")
    worker.go_on()
    wait_until(lambda: client.job(job).status.final, "the batch is recorded")
    assert results() == [("wait", 1)]


def test_a_handler_that_holds_the_interpreters_lock_keeps_its_lease(start, client, db, results):
    job = client.enqueue_job("q", ["hold"])
    worker = start(lease=3)
    worker.hear()
    first = expiry(db)
    wait_until(
        lambda: expiry(db) > first + timedelta(seconds=4),
        "the lease is kept for longer than it lasts",
        60,
    )
    worker.go_on()
    wait_until(lambda: client.job(job).status.final, "the batch is recorded")
    assert client.job(job).status is JobStatus.SUCCESS
    assert results() == [("hold", 1)]


def test_a_worker_that_only_waits_has_no_heartbeat(start, client):
    worker = start()
    wait_until(client.active_workers, "it has asked for work")
    assert worker.children() == []
    client.enqueue_job("q", ["wait"])
    worker.hear()
    assert len(worker.children()) == 1
    worker.go_on()


def test_a_killed_heartbeat_is_replaced(start, client, db):
    job = client.enqueue_job("q", ["wait"])
    worker = start(lease=3)
    worker.hear()
    (heartbeat,) = worker.children()
    os.kill(heartbeat, signal.SIGKILL)
    killed = db.execute("select clock_timestamp()").fetchone()[0]
    wait_until(
        lambda: expiry(db) > killed + timedelta(seconds=4), "another one keeps the lease", 60
    )
    assert worker.children() != [heartbeat]
    worker.go_on()
    wait_until(lambda: client.job(job).status.final, "the batch is recorded")


def test_a_heartbeat_that_loses_its_connection_gets_another(start, client, db, admin):
    job = client.enqueue_job("q", ["wait"])
    worker = start(lease=3)
    worker.hear()
    first = expiry(db)
    wait_until(lambda: expiry(db) > first, "the heartbeat has a connection")
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where query like '%extend_lease%' and pid <> pg_backend_pid()"
    )
    first = expiry(db)
    wait_until(lambda: expiry(db) > first + timedelta(seconds=1), "it has another one", 60)
    worker.go_on()
    wait_until(lambda: client.job(job).status.final, "the batch is recorded")


def test_sigterm_lets_the_handler_end_and_gives_back_what_was_not_begun(start, client, db, results):
    client.enqueue_job("q", ["wait", "second", "third"])
    worker = start(max_batches=2)
    worker.hear()
    os.kill(worker.pid, signal.SIGTERM)
    wait_until(lambda: "signal: draining" in worker.log.read_text(), "it has heard")
    worker.go_on()
    assert worker.hear() == {"event": "ended"}
    assert worker.wait() == 0
    assert results() == [("wait", 1)]
    assert db.execute("select state::text, attempt from pyjobs.batch order by id").fetchall() == [
        ("recorded", 1),
        ("pending", 0),
        ("pending", 0),
    ]


def test_a_signal_that_does_not_wake_the_main_thread_is_heard(start, client):
    """It may be given to another thread, or come just before the main thread falls asleep."""
    client.enqueue_job("q", ["thread", "second"])
    worker = start()
    worker.hear()
    wait_until(lambda: "signal: draining" in worker.log.read_text(), "it has heard")
    worker.go_on()
    assert worker.hear() == {"event": "ended"}
    assert worker.wait() == 0


@pytest.mark.parametrize("way", ["timeout", "second signal"])
def test_a_drain_is_bounded(start, client, db, results, way):
    client.enqueue_job("q", ["wait"])
    worker = start(drain_timeout=0.1 if way == "timeout" else 600)
    worker.hear()
    os.kill(worker.pid, signal.SIGTERM)
    if way != "timeout":
        wait_until(lambda: "signal: draining" in worker.log.read_text(), "it has heard")
        os.kill(worker.pid, signal.SIGINT)
    assert worker.hear() == {"event": "ended"}
    assert worker.wait() == 0
    # Given back without fault, and without what the handler had written.
    assert db.execute("select state::text, attempt from pyjobs.batch").fetchall() == [
        ("pending", 0)
    ]
    assert results() == []


def test_of_several_hosts_leases_are_kept_by_whichever_is_there(start, client, db, dsn, results):
    """After a failover the first is gone, and with it the address that the worker began with."""
    job = client.enqueue_job("q", ["wait"])
    with Proxy(dsn) as first, Proxy(dsn) as second:
        places = [conninfo_to_dict(proxy.dsn) for proxy in (first, second)]
        both = {name: f"{places[0][name]},{places[1][name]}" for name in ("host", "port")}
        worker = start(make_conninfo("", **{**places[0], **both}), lease=3)
        worker.hear()
        first.down()
        begun = expiry(db)
        wait_until(
            lambda: expiry(db) > begun + timedelta(seconds=4),
            "the lease is kept for longer than it lasts",
            60,
        )
        # Its transaction was lost with the first: again, under the same lease.
        worker.go_on()
        worker.hear()
        worker.go_on()
        wait_until(lambda: client.job(job).status.final, "the batch is recorded", 40)
        assert second.queries()
    assert results() == [("wait", 1)]


@pytest.mark.parametrize("way", ["restart", "kill"])
@pytest.mark.parametrize("twin", [SyncTwin, AsyncTwin], ids=["sync", "async"])
def test_a_worker_survives_the_end_of_its_server(twin, way):
    """A fast shutdown, or kill -9 of the server, in the middle of many batches."""
    items = list(range(150))
    with embedded.server(settings=embedded.THROWAWAY) as server:
        url = server.url()
        migrate.migrate(url)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("create table public.result (item int, attempt int)")

        async def handler(batch, conn):
            await conn.execute(
                "insert into public.result values (%s, %s)", [batch.items[0], batch.attempt]
            )
            batch.count(seen=1)

        with pyjobs.Client(url) as client:
            job = client.enqueue_job("q", items, max_attempts=1)
            worker = twin().worker(url, handler, "q", poll=0.1, concurrency=2, lease=30).start()
            for done in (20, 70):
                wait_until(
                    lambda done=done: client.job_progress(job).stages[0].processed > done,
                    "some are done",
                    60,
                )
                if way == "kill":
                    server.kill()
                    server.start()
                else:
                    server.restart()
            # A batch whose claim was answered into the void waits for its lease to run out.
            wait_until(lambda: _done_but_for_lost_claims(client, job), "the rest is done", 60)
            worker.stop()
        with psycopg.connect(url) as conn:
            rows = [row[0] for row in conn.execute("select item from public.result order by 1")]
            processed = counted(conn, job)
            assert len(rows) == len(set(rows)) == processed
            assert conn.execute("select count(*) from pyjobs.audit_job()").fetchone() == (0,)


def _done_but_for_lost_claims(client, job):
    (stage,) = client.job_progress(job).stages
    return stage.pending == 0 and stage.processed >= stage.total - 4


def counted(conn, job):
    return conn.execute(
        "select (counters->>'seen')::int from jsonb_path_query("
        "pyjobs.job_progress(%s), '$.stages[*].counters') counters",
        [job],
    ).fetchone()[0]
