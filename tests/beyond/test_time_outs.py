"""The server's time-outs: a clear error, nothing half done, and work goes on."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

import psycopg
import pytest

import pyjobs
from pyjobs import JobStatus
from tests.support import wait_until
from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session, make_operators_patient

AT_ONCE = {"retry_in": lambda _attempt: timedelta(0)}


@pytest.fixture
def session(connect, background, admin):
    return lambda **options: Session(connect(**options), background, admin)


@pytest.fixture
def look(session, db):
    """The session that sets the scene and looks at the end. Afterwards the rules must hold."""
    yield session()
    assert_rules(db)


@pytest.fixture
def last_two(look):
    """A job whose last two batches are leased."""
    job = look.enqueue(items=2)
    return (job, *look.claim(job, 2))


@pytest.fixture
def limit(admin):
    """``limit(statement_timeout="200ms")``: for the sessions of the database that come after."""

    def set_limit(**settings: str) -> None:
        for name, value in settings.items():
            admin.execute(f'alter database "{admin.info.dbname}" set {name} = {value!r}'.encode())

    return set_limit


LIMITS = {
    "statement_timeout": (psycopg.errors.QueryCanceled, "due to statement timeout"),
    "lock_timeout": (psycopg.errors.LockNotAvailable, "due to lock timeout"),
}


@pytest.mark.parametrize("setting", LIMITS)
def test_the_last_recorder_waits_no_longer_than_it_may(
    twin, dsn, look, session, limit, last_two, setting
):
    job, first, last = last_two
    a = session()
    a.begin().record(first)
    limit(**{setting: "200ms"})
    error, message = LIMITS[setting]
    with twin.client(dsn) as client:
        with pytest.raises(error, match=message):
            client.record_batch(last["batch_id"], last["lease_epoch"])
        a.commit()
        assert client.job(job).status is JobStatus.STARTED
        assert client.record_batch(last["batch_id"], last["lease_epoch"]).job_done
    assert look.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("setting", LIMITS)
def test_a_worker_tries_again_when_its_record_waited_too_long(
    twin, dsn, look, session, limit, setting, caplog
):
    caplog.set_level(logging.INFO, logger="pyjobs.worker")
    job = look.enqueue("q", items=2, max_attempts=1)
    (first,) = look.claim(job)
    a = session()
    a.begin().record(first)
    limit(**{setting: "200ms"})
    calls = []

    async def handler(batch, conn):
        calls.append(batch.batch_id)
        batch.count(seen=1)

    worker = twin.worker(dsn, handler, "q", heartbeat=False, poll=0.05, **AT_ONCE).start()
    wait_until(lambda: len(calls) >= 2, "it tries again")
    a.commit()
    wait_until(lambda: look.status(job) == "SUCCESS", "the job has ended")
    worker.stop()
    (stage,) = look.progress(job)["stages"]
    assert (stage["processed"], stage["failed"], stage["counters"]) == (2, 0, {"seen": 1})
    assert LIMITS[setting][1] in caplog.text


# Operators' calls have a bound of their own: half a second for each thing that they wait for. What
# a session allows itself, less or more, changes nothing in that, and is afterwards what it was.


@pytest.mark.parametrize("allowed", ["1ms", "1h"])
def test_an_operators_call_has_its_own_bound(look, session, last_two, allowed):
    job, first, last = last_two
    a, b = session(), session()
    b.do(f"set lock_timeout = '{allowed}'")
    a.begin().record(first)
    # The bound ends it, not the commit: nobody commits before it has answered.
    assert b.start(b.cancel, job, "0").result(SOON) == "CANCELING"
    for call in (b.finalize, b.quarantine):
        arguments = (job, "FAILURE") if call == b.finalize else (job,)
        with pytest.raises(psycopg.Error) as info:
            b.start(call, *arguments).result(SOON)
        assert info.value.sqlstate in {"PJ003", "PJ006"}
    assert b.value("show lock_timeout") == allowed
    a.commit()
    b.reap()
    assert look.status(job) == "REVOKED"
    with pytest.raises(psycopg.Error, match="is stale"):
        b.record(last)


@pytest.mark.parametrize("allowed", ["1ms", "1h"])
def test_an_operators_call_behind_a_lock_names_who_holds_it(look, session, allowed):
    job = look.enqueue(items=1)
    a, b = session(), session()
    b.do(f"set lock_timeout = '{allowed}'")
    a.begin().do("select from pyjobs_internal.job where id = %s for update", job)
    with pytest.raises(psycopg.Error) as info:
        b.start(b.value, "select pyjobs.pause_job(%s)", job).result(SOON)
    assert info.value.sqlstate == "PJ006"
    assert f"pid {a.pid} " in (info.value.diag.message_detail or "")
    assert b.value("show lock_timeout") == allowed
    a.rollback()
    assert b.value("select pyjobs.pause_job(%s)", job) == "PENDING"


def test_an_operators_call_is_stopped_by_the_statement_timeout(look, session, last_two, db):
    make_operators_patient(db)
    job, first, last = last_two
    a, b = session(), session()
    b.do("set statement_timeout = '200ms'")
    a.begin().record(first)
    with pytest.raises(psycopg.errors.QueryCanceled):
        b.start(b.cancel, job, "0").result(SOON)
    a.commit()
    assert look.status(job) == "STARTED"
    assert look.record(last)["job_done"]


IDLE = {
    "idle_in_transaction_session_timeout": "idle-in-transaction timeout",
    "transaction_timeout": "transaction timeout",
}


@pytest.mark.parametrize("setting", IDLE)
def test_a_handler_that_idles_in_its_transaction_is_refused_and_the_batch_is_worked_again(
    twin, dsn, look, admin, limit, setting, caplog
):
    if setting == "transaction_timeout" and admin.info.server_version < 170000:
        return  # there is none to hold to
    caplog.set_level(logging.INFO, logger="pyjobs.worker")
    look.do("create table public.result (item int, attempt int)")
    job = look.enqueue("q", items=2, batch_size=2)
    limit(**{setting: "200ms"})

    async def handler(batch, conn):
        await conn.execute("insert into public.result values (0, %s)", [batch.attempt])
        batch.count(seen=1)
        if batch.attempt == 1:
            pid = conn_pid(conn)
            gone = threading.Event()

            def watch() -> None:
                wait_until(lambda: not alive(admin, pid), "its session is ended")
                gone.set()

            threading.Thread(target=watch, daemon=True).start()
            await twin.wait_for(gone)

    twin.worker(dsn, handler, "q", heartbeat=False, poll=0.05, **AT_ONCE).finish()
    assert look.status(job) == "SUCCESS"
    (stage,) = look.progress(job)["stages"]
    assert (stage["processed"], stage["failed"], stage["counters"]) == (2, 0, {"seen": 1})
    # The first attempt's row is gone with its transaction, and it did cost an attempt.
    assert [row["attempt"] for row in look.rows("select attempt from public.result")] == [2]
    assert IDLE[setting] in caplog.text
    assert look.audit() == []


def conn_pid(conn) -> int:
    real = getattr(conn, "conn", conn)  # the synchronous twin's
    return real.info.backend_pid


def alive(admin, pid: int) -> bool:
    row = admin.execute("select from pg_stat_activity where pid = %s", [pid]).fetchone()
    return row is not None


def test_a_client_takes_no_notice_of_sessions_ended_while_idle(twin, dsn, look, admin, limit):
    limit(idle_session_timeout="100ms")
    count = (
        "select count(*) from pg_stat_activity where application_name = 'idle' "
        "and datname = current_database()"
    )
    with twin.client(f"{dsn} application_name=idle") as client:
        for done in range(3):
            client.enqueue_job("q")
            wait_until(lambda: admin.execute(count).fetchone() == (0,), "the session is ended")
            assert len(client.jobs()) == done + 1


def test_errors_of_the_server_are_not_mistaken_for_refusals(twin, dsn, look, session, limit):
    holder = session().begin()
    holder.do("lock table pyjobs_internal.job")
    limit(statement_timeout="100ms")
    with twin.client(dsn) as client:
        with pytest.raises(psycopg.errors.QueryCanceled) as info:
            client.enqueue_job("q")
        assert not isinstance(info.value, pyjobs.Error)
        holder.rollback()
        assert client.jobs() == []
