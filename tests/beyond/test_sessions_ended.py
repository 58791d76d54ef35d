"""A session that is ended from outside (pg_terminate_backend) at a chosen point loses nothing.

What it had begun is rolled back as a whole, and whoever comes next takes it up: nothing is lost,
and nothing counts twice.
"""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from pyjobs import JobStatus
from tests.support import wait_for_lock, wait_until
from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session, Stops, make_operators_patient


@pytest.fixture
def session(connect, background, admin):
    """More sessions of the owner, in autocommit mode."""
    return lambda: Session(connect(), background, admin)


@pytest.fixture
def look(session, db):
    """The session that sets the scene and looks at the end. Afterwards the rules must hold."""
    yield session()
    assert_rules(db)


@pytest.fixture
def stops(db, connect):
    return Stops(db, connect(direct=True))


@pytest.fixture
def end(admin):
    """End a session, as an administrator does; until it is gone."""

    def end_one(session: Session | int) -> None:
        pid = session if isinstance(session, int) else session.pid
        assert admin.execute("select pg_terminate_backend(%s, 20000)", [pid]).fetchone()[0]

    return end_one


# At every point of every call of a worker: before each function that the call comes through.


class Lease:
    """A job of two stages of which one batch is left in the first, and leased."""

    def __init__(self, look: Session) -> None:
        self.job = look.enqueue(
            "q", items=2, stages=["one", "two"], barriers=["two"], max_attempts=1
        )
        first, self.batch = look.claim(self.job, 2)
        look.record(first, counters={"seen": 1})

    @property
    def key(self) -> tuple[int, int]:
        return self.batch["batch_id"], self.batch["lease_epoch"]


def claim(query: str, *arguments: Any):
    return lambda session, _: [
        row["batch_id"] for row in session.rows(f"select * from pyjobs.{query}", *arguments)
    ]


CALLS = {
    "claim_next_job": claim("claim_next_job('w', '{fresh}')"),
    "claim_jobs": claim("claim_jobs('w', '{fresh}', 2)"),
    "claim_next_batch": lambda session, _: [
        row["batch_id"]
        for row in session.claim(
            session.value("select max(id) from pyjobs.job where queue = 'fresh'"), 1
        )
    ],
    "record_batch": lambda session, lease: session.record(
        lease.batch, counters={"seen": 1}, next_items=[1, 2]
    )["stage_done"],
    "record_and_claim": lambda session, lease: [
        row["batch_id"] is not None
        for row in session.rows(
            "select * from pyjobs.record_and_claim(%s, %s, 'w', counters => %s, next_items => %s)",
            *lease.key,
            '{"seen": 1}',
            "[1, 2]",
        )
    ],
    "record_batches": lambda session, lease: session.record_many(lease.batch),
    "extend_lease": lambda session, lease: session.extend(lease.batch)["job_status"],
    "release_batch": lambda session, lease: session.release(lease.batch, "broke"),
    "reap_leases": lambda session, _: [
        row["action"] for row in session.rows("select * from pyjobs.reap_leases()")
    ],
    "cancel_job": lambda session, lease: session.cancel(lease.job, "0"),
}


def scene(look: Session) -> Lease:
    """What there is before each call: a lease, work that was never claimed, an expired lease."""
    lease = Lease(look)
    look.enqueue("fresh", items=1)
    expired = look.enqueue("other", items=1, max_attempts=2)
    look.claim(expired, lease="1 microsecond")
    return lease


def passed_through(connect, admin, call, lease: Lease) -> list[str]:
    """The internal functions that a call comes through, found by making it and taking it back."""
    database = admin.info.dbname
    admin.execute(f'alter database "{database}" set track_functions = "all"'.encode())
    with connect() as conn:
        conn.execute("begin")
        call(Session(conn, None, admin), lease)  # type: ignore[arg-type]
        conn.execute("rollback")
        process = conn.info.backend_pid
    admin.execute(f'alter database "{database}" reset track_functions'.encode())
    # A session tells what it counted when it ends; before that, on a busy server, a part of it.
    wait_until(
        lambda: (
            not admin.execute("select from pg_stat_activity where pid = %s", [process]).fetchall()
        ),
        "the session has ended",
    )
    found = admin.execute(
        "select f.funcname from pg_stat_user_functions f join pg_proc p on p.oid = f.funcid "
        "join pg_language l on l.oid = p.prolang "
        "where l.lanname = 'plpgsql' and f.schemaname = 'pyjobs_internal' order by 1"
    ).fetchall()
    return [name for (name,) in found]


def contents(look: Session) -> str:
    """All rows of all tables, as one text."""
    tables = look.rows(
        "select c.oid::regclass::text as name from pg_class c "
        "where c.relnamespace = 'pyjobs_internal'::regnamespace and c.relkind = 'r' order by 1"
    )
    return "".join(
        look.value(f"select coalesce(string_agg(t::text, chr(10) order by t::text), '') from {t} t")
        for t in (table["name"] for table in tables)
    )


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_ended_anywhere_can_be_made_again(
    name, look, session, connect, admin, stops, end
):
    call = CALLS[name]
    points = passed_through(connect, admin, call, scene(look))
    look.do("select pyjobs.cancel_job(id, grace => '0') from pyjobs.job")
    ended = []
    for point in points:
        lease = scene(look)
        # A claim that has just noted its worker does not note it again.
        look.do("delete from pyjobs_internal.worker")
        before = contents(look)
        doomed = session()
        stops.before(point, doomed)
        started = doomed.start(call, doomed, lease)
        if doomed.waits_or_ends(started):
            end(doomed)
            with pytest.raises(psycopg.errors.AdminShutdown):
                started.result(SOON)
            ended.append(point)
            assert contents(look) == before
            # Whoever makes the call next finds all as if it had never been made.
            assert call(session(), lease)
        stops.go(point, doomed)
        look.do("select pyjobs.cancel_job(id, grace => '0') from pyjobs.job")
        assert look.value("select count(*) from pyjobs.job where finished_at is null") == 0
    assert ended == points
    assert len(ended) >= 2
    assert look.audit() == []


# While a call waits for another transaction.


@pytest.fixture
def last_two(look):
    """A job whose last two batches are leased."""
    job = look.enqueue(items=2)
    return (job, *look.claim(job, 2))


def test_the_last_recorder_is_ended_while_it_waits(look, session, end, last_two):
    job, first, last = last_two
    a, b = session(), session()
    a.begin().record(first)
    record = b.start(b.record, last)
    b.waits_for(a)
    end(b)
    with pytest.raises(psycopg.errors.AdminShutdown):
        record.result(SOON)
    a.commit()
    assert look.status(job) == "STARTED"
    assert session().record(last)["job_done"]
    assert look.ends_of(job) == ["SUCCESS"]
    assert look.progress(job)["stages"][0]["processed"] == 2
    assert look.audit() == []


def test_the_one_that_the_last_recorder_waits_for_is_ended(look, session, end, last_two):
    job, first, last = last_two
    a, b = session(), session()
    a.begin().record(first)
    record = b.start(b.record, last)
    b.waits_for(a)
    end(a)
    assert not record.result(SOON)["job_done"]
    assert look.status(job) == "STARTED"
    assert session().record(first)["job_done"]
    assert look.ends_of(job) == ["SUCCESS"]


def test_the_ender_is_ended_after_it_has_ended_the_job_and_before_its_commit(
    look, session, end, last_two
):
    job, first, last = last_two
    a, b = session(), session()
    a.record(first)
    assert b.begin().record(last)["job_done"]
    end(b)
    assert look.status(job) == "STARTED"
    assert session().record(last)["job_done"]
    assert look.ends_of(job) == ["SUCCESS"]


def test_a_cancel_is_ended_while_it_waits(look, session, end, last_two, db):
    job, first, last = last_two
    make_operators_patient(db)
    a, b = session(), session()
    a.begin().record(first)
    cancel = b.start(b.cancel, job, "0")
    b.waits_for(a)
    end(b)
    with pytest.raises(psycopg.errors.AdminShutdown):
        cancel.result(SOON)
    a.commit()
    assert look.status(job) == "STARTED"
    assert session().record(last)["job_done"]
    assert look.ends_of(job) == ["SUCCESS"]


# The Python half goes on by itself.


@pytest.fixture
def start_worker(twin, dsn):
    """A worker whose sessions are named "doomed"; stopped at the end of the test."""
    started = []

    def start(handler, **options):
        options = {"poll": 0.05, "reap_every": None, **options}
        running = twin.worker(f"{dsn} application_name=doomed", handler, "q", **options)
        started.append(running.start())
        return running

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def pids(admin):
    """The server processes of a client's sessions, or of those that do something like that."""

    def find(application: str, doing: str = "%") -> list[int]:
        rows = admin.execute(
            "select pid from pg_stat_activity where application_name = %s and query like %s "
            "and datname = current_database()",
            [application, doing],
        )
        return [pid for (pid,) in rows.fetchall()]

    return find


def test_a_client_records_again_by_itself(twin, dsn, look, session, end, last_two, pids):
    job, first, last = last_two
    a = session()
    a.begin().record(first)
    with twin.client(f"{dsn} application_name=doomed") as client:
        record = a.start(client.record_batch, last["batch_id"], last["lease_epoch"])
        for _ in range(2):
            (pid,) = wait_until(lambda: pids("doomed", "%record_batch%"), "the record is made")
            wait_for_lock(look.conn, pid, a.conn)
            end(pid)
            wait_until(lambda pid=pid: set(pids("doomed")) - {pid}, "it is made again")
        a.commit()
        assert record.result(SOON).job_done
    assert look.ends_of(job) == ["SUCCESS"]
    assert look.progress(job)["stages"][0]["processed"] == 2


def test_a_client_says_what_it_may_not_repeat(twin, dsn, look, session, end, pids):
    holder = session().begin()
    holder.do("lock table pyjobs_internal.job")
    with twin.client(f"{dsn} application_name=doomed") as client:
        enqueue = holder.start(client.enqueue_job, "q")
        (pid,) = wait_until(lambda: pids("doomed", "%enqueue_job%"), "the call is made")
        wait_for_lock(look.conn, pid, holder.conn)
        end(pid)
        with pytest.raises(psycopg.errors.AdminShutdown, match="administrator command"):
            enqueue.result(SOON)
        holder.rollback()
        assert client.jobs() == []
        assert client.job(client.enqueue_job("q")).status is JobStatus.PENDING


# Where a worker's session stands when it is ended: what it says, and of which table it waits for a
# lock that the test holds.
PLACES = {
    "claim": ("%claim_next_job%", "pyjobs_internal.batch"),
    "handler": ("%public.result%", "public.result"),
    "record": ("%record_batch%", "pyjobs_internal.batch"),
    "reap": ("%reap_leases%", "pyjobs_internal.batch"),
}


@pytest.fixture
def holder(session, start_worker):
    """A session that lets go before the workers are stopped."""
    held = session()
    yield held
    held.rollback()


@pytest.mark.parametrize("place", PLACES)
def test_a_worker_goes_on_when_its_session_is_ended(start_worker, look, holder, end, pids, place):
    doing, table = PLACES[place]
    look.do("create table public.result (item int)")
    job = look.enqueue("q", items=6, max_attempts=1)
    locked = threading.Event()

    def lock() -> None:
        holder.begin().do(f"lock table {table}")
        locked.set()

    async def handler(batch, conn):
        await conn.execute("insert into public.result values (%s)", batch.items)
        batch.count(seen=1)
        if place == "record" and not locked.is_set():
            lock()

    def stands() -> int | None:
        for pid in pids("doomed", doing):
            if look.value("select cardinality(pg_blocking_pids(%s)) > 0", pid):
                return pid
        return None

    if place != "record":
        lock()
    start_worker(handler, heartbeat=False, reap_every=0.05 if place == "reap" else None)
    end(wait_until(stands, "it waits for the test's lock"))
    if place != "record":  # there it first asks what became of the record, and waits with that
        end(wait_until(stands, "it waits there again"))
    holder.rollback()
    wait_until(lambda: look.status(job) == "SUCCESS", "the job has ended", 60)
    (stage,) = look.progress(job)["stages"]
    assert (stage["processed"], stage["failed"], stage["counters"]) == (6, 0, {"seen": 6})
    rows = look.rows("select item from public.result order by 1")
    assert [row["item"] for row in rows] == list(range(6))
    assert look.audit() == []


def test_a_worker_goes_on_when_all_its_sessions_are_ended_again_and_again(start_worker, look, pids):
    """Its heartbeat's and its ear's too, wherever they stand."""
    items = 60
    look.do("create table public.result (item int)")

    async def handler(batch, conn):
        await conn.execute("insert into public.result values (%s)", batch.items)
        batch.count(seen=1)

    job = look.enqueue("q", items=items)
    start_worker(handler, concurrency=3, lease=2, reap_every=0.5, listen=True)
    ended = 0
    for done in range(5, items - 5, 5):
        wait_until(
            lambda done=done: look.progress(job)["stages"][0]["processed"] >= done,
            f"{done} are done",
            60,
        )
        for pid in pids("doomed"):
            look.value("select pg_terminate_backend(%s)", pid)
            ended += 1
    wait_until(lambda: look.status(job) == "SUCCESS", "the job has ended", 60)
    assert ended > 20
    (stage,) = look.progress(job)["stages"]
    assert (stage["processed"], stage["counters"]) == (items, {"seen": items})
    rows = [row["item"] for row in look.rows("select item from public.result order by 1")]
    assert rows == list(range(items))
    assert look.audit() == []
