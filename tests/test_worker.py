"""The worker records what its handler did, with its rows, once or not at all.

Each test runs with the synchronous and the asynchronous worker. Handlers are written once, as
coroutines; see tests/support/twins.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from datetime import timedelta

import psycopg
import pytest
import structlog
from psycopg.conninfo import make_conninfo

import pyjobs
from pyjobs import Batch, JobStatus, _heartbeat
from pyjobs._heartbeat import Heart
from pyjobs._keeper import LeaseKeeper
from pyjobs._log import get_logger
from tests.support import wait_until
from tests.support.proxy import Proxy

AT_ONCE = {"retry_in": lambda _attempt: timedelta(0)}
QUICK = {"heartbeat": False, **AT_ONCE}


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


async def store(batch, conn):
    """Write a row for each item."""
    for item in batch.items:
        await conn.execute(
            "insert into public.result values (%s::jsonb, %s, %s)",
            [json.dumps(item), batch.batch_id, batch.attempt],
        )


@pytest.fixture
def notes(caplog):
    """The worker's log, as lines."""
    caplog.set_level(logging.INFO, logger="pyjobs.worker")
    return lambda: [record.getMessage() for record in caplog.records]


# What a handler does is recorded


def test_a_job_is_worked_to_its_end_with_rows_counters_and_failures(twin, dsn, client, results):
    async def handler(batch, conn):
        await store(batch, conn)
        batch.count(seen=1)
        batch.count(seen=len(batch.items), other=2)
        if 3 in batch.items:
            batch.fail(batch.items.index(3), "replaced")
            batch.fail(batch.items.index(3), ValueError("bad \0 and \ud800"))

    job = client.enqueue_job("q", list(range(7)), batch_size=3)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    progress = client.job_progress(job)
    assert progress.status is JobStatus.SUCCESS
    (stage,) = progress.stages
    assert (stage.processed, stage.failed, stage.counters) == (7, 1, {"seen": 10, "other": 6})
    assert [(e.item, e.error) for e in progress.errors] == [(3, "ValueError: bad \ufffd and ?")]
    assert results() == list(range(7))
    assert client.audit_job() == []


def test_a_batch_shows_its_claim(twin, dsn, client):
    seen = []

    async def handler(batch, conn):
        seen.append(
            (
                *(batch.job_id, batch.run, batch.queue, batch.stage, batch.attempt),
                *(batch.items, batch.params, batch.cancelled, repr(batch)),
            )
        )

    job = client.enqueue_job("q", ["x"], {"p": 1})
    twin.worker(dsn, handler, "q", **QUICK).finish()
    (row,) = seen
    assert row[:8] == (job, 1, "q", "process", 1, ["x"], {"p": 1}, False)
    assert f"of job {job}, stage process, 1 items" in row[8]


def test_emitted_items_go_through_all_stages(twin, dsn, client, results):
    async def handler(batch, conn):
        if batch.stage == "collect":
            batch.emit({"n": n} for many in batch.items for n in range(many))
        elif batch.stage == "process":
            batch.emit([item["n"] * 10 for item in batch.items])
        else:
            await store(batch, conn)

    job = client.enqueue_job(
        "q", [4, 3], stages=["collect", "process", "results"], barriers=["results"], batch_size=2
    )
    worker = twin.worker(dsn, handler, "q", concurrency=3, max_batches=2, poll=0.05, **QUICK)
    worker.finish()
    assert client.job_progress(job).status is JobStatus.SUCCESS
    assert sorted(results()) == [0, 0, 10, 10, 20, 20, 30]


def test_a_worker_serves_its_queues_only_and_may_run_again(twin, dsn, client):
    async def handler(batch, conn):
        pass

    one, two, three = (client.enqueue_job(queue) for queue in ("a", "b", "c"))
    worker = twin.worker(dsn, handler, "a", "b", **QUICK)
    worker.finish()
    assert [client.job(job).status for job in (one, two, three)] == [
        JobStatus.SUCCESS,
        JobStatus.SUCCESS,
        JobStatus.PENDING,
    ]
    assert [w.worker for w in client.active_workers()] == [worker.worker.name]


def test_batches_are_worked_at_once(twin, dsn, client):
    barrier = threading.Barrier(3)

    async def handler(batch, conn):
        # Each waits until three are there at the same time.
        arrived = threading.Event()

        def arrive():
            barrier.wait(20)
            arrived.set()

        threading.Thread(target=arrive, daemon=True).start()
        await twin.wait_for(arrived)

    job = client.enqueue_job("q", [1, 2, 3])
    twin.worker(dsn, handler, "q", concurrency=3, **QUICK).finish()
    assert client.job_progress(job).status is JobStatus.SUCCESS


# The handler's connection


def test_the_transaction_opens_when_the_connection_is_first_used(twin, dsn, client, db, results):
    def in_transaction():
        return db.execute(
            "select count(*) from pg_stat_activity where application_name = 'pyjobs'"
            " and state = 'idle in transaction' and datname = current_database()"
        ).fetchone()[0]

    seen = []

    async def handler(batch, conn):
        seen.append(in_transaction())
        await store(batch, conn)
        seen.append(in_transaction())
        seen.append(results())

    client.enqueue_job("q", [1])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert seen == [0, 1, []]
    assert results() == [1]


def test_rows_of_a_handler_that_raises_are_rolled_back_and_the_batch_is_tried_again(
    twin, dsn, client, results, db, notes
):
    async def handler(batch, conn):
        await store(batch, conn)
        if batch.attempt < 3:
            raise LookupError(f"attempt {batch.attempt} \0")

    job = client.enqueue_job("q", [1], max_attempts=3)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(job).status is JobStatus.SUCCESS
    assert db.execute("select attempt from public.result").fetchall() == [(3,)]
    assert db.execute("select error from pyjobs.batch").fetchall() == [
        ("LookupError: attempt 2 \ufffd",)
    ]
    assert len([note for note in notes() if note.startswith("batch failed")]) == 2


def test_a_handler_that_always_raises_uses_up_the_attempts(twin, dsn, client, results):
    async def handler(batch, conn):
        await store(batch, conn)
        raise RuntimeError("never")

    job = client.enqueue_job("q", [1, 2], batch_size=2, max_attempts=2)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    progress = client.job_progress(job)
    assert progress.status is JobStatus.FAILURE
    assert {error.error for error in progress.errors} == {"RuntimeError: never"}
    assert results() == []


def test_the_pause_after_a_failed_attempt_grows(twin, dsn, client, db):
    async def handler(batch, conn):
        raise RuntimeError("not yet")

    client.enqueue_job("q", [1])
    twin.worker(dsn, handler, "q", heartbeat=False).finish()
    state, attempt, pause = db.execute(
        "select state::text, attempt, extract(epoch from due_at - clock_timestamp())"
        " from pyjobs.batch"
    ).fetchone()
    assert (state, attempt) == ("pending", 1)
    assert pause < 1
    from pyjobs._async.worker import back_off

    assert timedelta(seconds=8) <= back_off(5) <= timedelta(seconds=16)
    assert timedelta(seconds=150) <= back_off(1000) <= timedelta(seconds=300)


@pytest.mark.parametrize("way", ["commit", "rollback", "close"])
def test_a_handler_cannot_end_its_transaction(twin, dsn, client, results, way):
    said = []

    async def handler(batch, conn):
        await store(batch, conn)
        target = conn if twin.name == "async" else conn.conn
        try:
            result = getattr(target, way)()
            if twin.name == "async":
                await result
        except RuntimeError as exc:
            said.append(str(exc))
            raise

    job = client.enqueue_job("q", [1], max_attempts=1)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(job).status is JobStatus.FAILURE
    assert "the worker commits it together with the record" in said[0]
    assert results() == []


def test_what_is_not_accepted_at_the_record_takes_the_rows_with_it(twin, dsn, client, results, db):
    async def handler(batch, conn):
        await store(batch, conn)
        batch.emit(["there is no next stage"])

    job = client.enqueue_job("q", [1], max_attempts=1)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(job).status is JobStatus.FAILURE
    assert "next_items" in db.execute("select error from pyjobs.batch").fetchone()[0]
    assert results() == []


def test_a_statement_that_fails_and_is_ignored_fails_the_batch(twin, dsn, client, results):
    async def handler(batch, conn):
        await store(batch, conn)
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            await conn.execute("select 1 / 0")

    job = client.enqueue_job("q", [1], max_attempts=1)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(job).status is JobStatus.FAILURE
    assert results() == []


def test_a_constraint_checked_at_commit_fails_the_batch(twin, dsn, client, results, db):
    db.execute(
        "alter table public.result add constraint once unique (item) deferrable initially deferred"
    )

    async def handler(batch, conn):
        await store(batch, conn)
        await store(batch, conn)

    job = client.enqueue_job("q", [1], max_attempts=1)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert client.job_progress(job).status is JobStatus.FAILURE
    assert results() == []


# Refused, repeated, lost


def test_a_late_result_is_refused_with_its_rows_and_reported(twin, dsn, client, results, db, notes):
    async def handler(batch, conn):
        await store(batch, conn)
        # Somebody else has it by now, and records it.
        db.execute("select pyjobs.release_batch(%s, %s)", [batch.batch_id, batch.lease_epoch])
        (other,) = client.claim_next_job("other", ["q"])
        client.record_batch(other.batch_id, other.lease_epoch, counters={"by_other": 1})

    job = client.enqueue_job("q", [1])
    worker = twin.worker(dsn, handler, "q", **QUICK)
    worker.finish()
    assert results() == []
    (stage,) = client.job_progress(job).stages
    assert (stage.processed, stage.counters) == (1, {"by_other": 1})
    assert db.execute("select sqlstate, class, detail from pyjobs.refused").fetchall() == [
        ("PJ001", "suspicious", f"worker {worker.worker.name}")
    ]
    (note,) = [note for note in notes() if note.startswith("result refused")]
    assert "sqlstate=PJ001" in note
    assert "status=SUCCESS" in note


def test_a_result_after_a_cancel_is_normal(twin, dsn, client, results, db, caplog):
    caplog.set_level(logging.INFO, logger="pyjobs.worker")

    async def handler(batch, conn):
        client.cancel_job(batch.job_id, grace=timedelta(0))
        await store(batch, conn)

    client.enqueue_job("q", [1, 2])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert results() == []
    assert db.execute("select class from pyjobs.refused").fetchall() == [("normal",)]
    (record,) = [r for r in caplog.records if "result refused" in r.getMessage()]
    assert record.levelno == logging.INFO


@pytest.mark.parametrize(
    ("cut", "calls"),
    [("cut_after", 1), ("cut_within", 1), ("cut_before", 2)],
    ids=["committed", "two-answers", "not-committed"],
)
def test_a_lost_commit_is_neither_recorded_twice_nor_without_its_rows(
    twin, dsn, client, results, notes, cut, calls
):
    called = []
    with Proxy(dsn) as proxy:

        async def handler(batch, conn):
            called.append(batch.lease_epoch)
            await store(batch, conn)
            batch.count(seen=1)
            if len(called) == 1:
                getattr(proxy, cut)(b"COMMIT")

        job = client.enqueue_job("q", [1])
        twin.worker(proxy.dsn, handler, "q", **QUICK).finish()
        assert proxy.cuts == 1
    assert len(called) == calls
    assert len(set(called)) == 1
    progress = client.job_progress(job)
    assert progress.status is JobStatus.SUCCESS
    assert progress.stages[0].counters == {"seen": 1}
    assert results() == [1]
    assert len([note for note in notes() if note.startswith("batch recorded")]) == 1


def test_a_job_all_of_whose_commits_get_lost_is_worked_once(twin, dsn, client, results):
    """Of every other one the server never hears, and the batch is worked again."""
    items = list(range(12))
    called = []
    with Proxy(dsn) as proxy:

        async def handler(batch, conn):
            (item,) = batch.items
            first = item not in called
            called.append(item)
            await store(batch, conn)
            batch.count(seen=1)
            if batch.stage == "one":
                batch.emit([item + 6])
            if first:
                getattr(proxy, "cut_after" if item % 2 else "cut_before")(b"COMMIT")

        job = client.enqueue_job("q", items[:6], stages=["one", "two"], max_attempts=1)
        twin.worker(proxy.dsn, handler, "q", **QUICK).finish()
        assert proxy.cuts == len(items)
    assert sorted(called) == sorted(items + items[::2])
    progress = client.job_progress(job)
    assert progress.status is JobStatus.SUCCESS
    assert [stage.counters for stage in progress.stages] == [{"seen": 6}, {"seen": 6}]
    assert results() == items
    assert client.audit_job() == []


@pytest.mark.parametrize("cut", ["cut_after", "cut_before"])
def test_a_lost_record_without_rows_is_recorded_once(twin, dsn, client, cut, notes):
    called = []
    with Proxy(dsn) as proxy:

        async def handler(batch, conn):
            called.append(batch)
            batch.count(seen=1)
            getattr(proxy, cut)(b"record_batch")

        job = client.enqueue_job("q", [1])
        twin.worker(proxy.dsn, handler, "q", **QUICK).finish()
        assert proxy.cuts == 1
    assert len(called) == 1
    progress = client.job_progress(job)
    assert (progress.status, progress.stages[0].counters) == (JobStatus.SUCCESS, {"seen": 1})
    assert len([note for note in notes() if note.startswith("batch recorded")]) == 1


def test_a_deadlock_of_the_handlers_transaction_costs_no_attempt(twin, dsn, client, results, db):
    called = []

    async def handler(batch, conn):
        called.append(batch.attempt)
        await store(batch, conn)
        if len(called) < 3:
            await conn.execute("do $$ begin raise 'made' using errcode = '40P01'; end $$")

    job = client.enqueue_job("q", [1], max_attempts=1)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert called == [1, 1, 1]
    assert client.job_progress(job).status is JobStatus.SUCCESS
    assert results() == [1]


def test_handlers_that_record_several_jobs_in_opposite_orders_are_repeated(
    twin, dsn, client, results
):
    """A real deadlock, of the callers' own making: one is ended by the server, and goes again."""
    others = {job: client.enqueue_job("other", [1, 2]) for job in ("one", "two")}
    leases = {
        name: [(c.batch_id, c.lease_epoch) for c in client.claim_next_batch(job, "w", 2)]
        for name, job in others.items()
    }
    orders = {"there": ["one", "two"], "back": ["two", "one"]}
    recorded = {name: threading.Event() for name in orders}
    called = []

    async def handler(batch, conn):
        (item,) = batch.items
        called.append(item)
        await store(batch, conn)
        for n, name in enumerate(orders[item]):
            lease = leases[name][0 if item == "there" else 1]
            await conn.execute("select pyjobs.record_batch(%s, %s)", lease)
            if n == 0 and called.count(item) == 1:
                recorded[item].set()
                await twin.wait_for(recorded["back" if item == "there" else "there"])

    client.enqueue_job("q", list(orders), max_attempts=1)
    twin.worker(dsn, handler, "q", concurrency=2, **QUICK).finish()
    assert len(called) == 3
    assert results() == ["back", "there"]
    assert {job.status for job in client.jobs()} == {JobStatus.SUCCESS}
    assert client.audit_job() == []


def test_a_transaction_that_is_lost_every_time_costs_an_attempt(twin, dsn, client, db):
    called = []

    async def handler(batch, conn):
        called.append(batch.attempt)
        await conn.execute("do $$ begin raise 'made' using errcode = '40P01'; end $$")

    job = client.enqueue_job("q", [1], max_attempts=2)
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert called == [1] * 5 + [2] * 5
    assert client.job_progress(job).status is JobStatus.FAILURE
    assert "lost 5 times" in db.execute("select error from pyjobs.batch").fetchone()[0]


def test_a_worker_waits_for_a_server_that_is_away(twin, dsn, client, results, notes):
    with Proxy(dsn) as proxy:
        first, go_on = threading.Event(), threading.Event()

        async def handler(batch, conn):
            await store(batch, conn)
            if not first.is_set():
                first.set()
                await twin.wait_for(go_on)

        job = client.enqueue_job("q", list(range(20)))
        worker = twin.worker(proxy.dsn, handler, "q", poll=0.05, **QUICK).start()
        assert first.wait(20)
        proxy.down()
        go_on.set()
        wait_until(
            lambda: any("server is away" in note for note in notes()), "the worker has noticed"
        )
        proxy.up()
        wait_until(lambda: client.job(job).status.final, "the job is worked to its end", 60)
        worker.stop()
    assert results() == list(range(20))
    assert client.job_progress(job).stages[0].failed == 0


def test_an_error_that_does_not_pass_ends_the_worker(twin, database, client):
    async def handler(batch, conn):
        pass

    worker = twin.worker(database.dsn_of("reader"), handler, "q", **QUICK)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.finish()


# Leases


def test_leases_are_kept_alive_and_a_cancel_is_told(twin, dsn, client, db):
    """The handler outlives its lease many times, and stops when its job is cancelled."""
    seen = {}

    async def handler(batch, conn):
        for name, ready in (
            ("extended", lambda: expiry() > batch.claim.lease_expires_at + timedelta(seconds=2)),
            ("cancelled", lambda: batch.cancelled),
        ):
            event = threading.Event()

            def watch(ready=ready, event=event):
                wait_until(ready, "the worker hears of it", 30)
                event.set()

            threading.Thread(target=watch, daemon=True).start()
            await twin.wait_for(event)
            seen[name] = True
            if name == "extended":
                client.cancel_job(batch.job_id, grace=timedelta(hours=1))
        raise InterruptedError("stopped")

    def expiry():
        with psycopg.connect(dsn) as conn:
            return conn.execute("select lease_expires_at from pyjobs.batch").fetchone()[0]

    job = client.enqueue_job("q", [1])
    twin.worker(dsn, handler, "q", lease=1, **AT_ONCE).finish()
    assert seen == {"extended": True, "cancelled": True}
    # Given back without fault: that was the last lease, and ends the job.
    assert client.job(job).status is JobStatus.REVOKED
    assert db.execute("select error from pyjobs.batch").fetchone() == (None,)


def test_a_lease_that_was_lost_is_told(twin, dsn, client, db):
    async def handler(batch, conn):
        client.quarantine_job(batch.job_id, "odd")
        event = threading.Event()

        def watch():
            wait_until(lambda: batch.cancelled, "the worker hears of it", 30)
            event.set()

        threading.Thread(target=watch, daemon=True).start()
        await twin.wait_for(event)

    job = client.enqueue_job("q", [1])
    twin.worker(dsn, handler, "q", lease=1, **AT_ONCE).finish()
    assert client.job(job).status is JobStatus.UNKNOWN
    assert db.execute("select sqlstate from pyjobs.refused").fetchall() == [("PJ001",)]


def test_a_handler_beyond_its_time_limit_loses_its_lease(twin, dsn, client, db, results):
    attempts = []

    async def handler(batch, conn):
        attempts.append(batch.attempt)
        await store(batch, conn)
        if batch.attempt == 1:
            event = threading.Event()

            def watch():
                wait_until(lambda: batch.cancelled, "it is told", 30)
                with pyjobs.Client(dsn) as other:
                    wait_until(other.reap_leases, "its lease has run out", 30)
                event.set()

            threading.Thread(target=watch, daemon=True).start()
            await twin.wait_for(event)

    job = client.enqueue_job("q", [1])
    twin.worker(dsn, handler, "q", lease=1, time_limit=0.1, reap_every=None, **AT_ONCE).finish()
    assert client.job(job).status is JobStatus.SUCCESS
    assert attempts == [1, 2]
    assert db.execute("select attempt from public.result").fetchall() == [(2,)]


def test_expired_leases_of_others_are_taken_back(twin, dsn, client, db, results):
    client.enqueue_job("q", [1])
    client.claim_next_job("gone", ["q"], lease=timedelta(milliseconds=1))
    wait_until(
        lambda: db.execute(
            "select lease_expires_at < clock_timestamp() from pyjobs.batch"
        ).fetchone()[0],
        "the lease is over",
    )
    worker = twin.worker(dsn, store, "q", reap_every=0.05, poll=0.05, **QUICK).start()
    wait_until(results, "the batch was taken over")
    worker.stop()
    assert db.execute("select attempt from public.result").fetchall() == [(2,)]


# Behind a pooler


def test_nothing_is_kept_in_a_session(twin, dsn, client, results):
    """Behind a transaction-pooling proxy every transaction may be on another session.

    So: no prepared statements with a name, no settings that outlive a transaction, no session's
    locks, no LISTEN, unless asked for.
    """
    with Proxy(dsn) as proxy:

        async def handler(batch, conn):
            await store(batch, conn)
            extended = threading.Event()

            def watch():
                wait_until(
                    lambda: any("extend_lease" in text for _, text in proxy.queries()),
                    "the lease is extended",
                    30,
                )
                extended.set()

            threading.Thread(target=watch, daemon=True).start()
            await twin.wait_for(extended)

        client.enqueue_job("q", list(range(8)), batch_size=2)
        twin.worker(proxy.dsn, handler, "q", lease=1, max_batches=2, **AT_ONCE).finish()
        queries = proxy.queries()
    assert results() == list(range(8))
    assert {name for name, _ in queries} == {""}
    texts = {text.strip().lower() for _, text in queries}
    assert "begin" in texts
    state = ("set ", "listen", "prepare", "declare", "create temp", "load", "discard")
    assert [
        text
        for text in texts
        if (text.startswith(state) and not text.startswith("set local"))
        or "pg_advisory_lock" in text
        or (", false)" in text and "set_config" in text)
    ] == []


# The end


def test_a_stopped_worker_finishes_what_it_has_begun_and_gives_back_the_rest(
    twin, dsn, client, db, results
):
    begun, go_on = threading.Event(), threading.Event()

    async def handler(batch, conn):
        begun.set()
        await twin.wait_for(go_on)
        await store(batch, conn)

    client.enqueue_job("q", [1, 2, 3])
    worker = twin.worker(dsn, handler, "q", max_batches=2, **QUICK).start()
    assert begun.wait(20)
    worker.worker.stop()
    go_on.set()
    worker.join()
    assert results() == [1]
    assert db.execute("select state::text, attempt from pyjobs.batch order by id").fetchall() == [
        ("recorded", 1),
        ("pending", 0),
        ("pending", 0),
    ]


def test_a_handler_that_does_not_end_in_time_loses_its_batch_without_an_attempt(
    twin, dsn, client, db, results
):
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    async def handler(batch, conn):
        await store(batch, conn)
        begun.set()
        try:
            await twin.wait_for(go_on)
        finally:
            ended.set()

    client.enqueue_job("q", [1])
    worker = twin.worker(dsn, handler, "q", drain_timeout=0.1, **QUICK).start()
    assert begun.wait(20)
    worker.stop()
    assert db.execute("select state::text, attempt from pyjobs.batch").fetchall() == [
        ("pending", 0)
    ]
    go_on.set()
    assert ended.wait(20)
    if twin.name == "sync":
        # The thread could not be stopped; what it still writes is refused.
        wait_until(lambda: not worker.worker._lanes.running, "the handler's thread has ended")
    assert results() == []
    assert db.execute("select state::text from pyjobs.batch").fetchall() == [("pending",)]


def test_a_cancelled_run_gives_everything_back(dsn, client, db, results):
    """Of the asynchronous worker: in a task that is cancelled, as by a TaskGroup."""

    async def run():
        begun = asyncio.Event()

        async def handler(batch, conn):
            await store(batch, conn)
            begun.set()
            await asyncio.Event().wait()

        async with pyjobs.AsyncClient(dsn) as aclient:
            task = asyncio.create_task(
                pyjobs.AsyncWorker(aclient, handler, ["q"], max_batches=2, **QUICK).run()
            )
            await asyncio.wait_for(begun.wait(), 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    client.enqueue_job("q", [1, 2, 3])
    asyncio.run(run())
    assert results() == []
    assert (
        db.execute("select state::text, attempt from pyjobs.batch").fetchall()
        == [("pending", 0)] * 3
    )


def test_stop_before_run_ends_it_at_once(twin, dsn, client, results):
    client.enqueue_job("q", [1])
    worker = twin.worker(dsn, store, "q", **QUICK)
    worker.worker.stop()
    seen = []
    worker.finish(after=lambda: seen.extend(results()))
    assert seen == []
    assert results() == [1]


def test_a_worker_that_listens_is_woken(twin, dsn, client, results):
    """With a poll of ten minutes nobody else would find the job in time."""
    worker = twin.worker(dsn, store, "q", listen=True, poll=600, **QUICK).start()
    # Its first questions come soon one after the other; let it fall asleep.
    client.enqueue_job("q", ["first"])
    wait_until(results, "the first job is worked")
    client.enqueue_job("q", ["second"])
    wait_until(lambda: "second" in results(), "the second is worked")
    worker.stop()


@pytest.fixture
def pauses(monkeypatch):
    """``pauses(NAME=seconds)``: of the worker's own, others."""

    def set_to(**values):
        for module in ("pyjobs._async.worker", "pyjobs._sync.worker"):
            for name, value in values.items():
                monkeypatch.setattr(f"{module}.{name}", value)

    return set_to


def hears(worker):
    wait_until(lambda: worker.worker._hears, "it listens")


def test_a_worker_that_listens_ends_at_once(twin, dsn, client, notes):
    worker = twin.worker(dsn, store, "q", listen=True, drain_timeout=3, **QUICK).start()
    hears(worker)
    worker.stop()
    assert not [note for note in notes() if "did not end in time" in note]


def test_a_worker_that_listens_asks_so_often_that_it_goes_on_being_woken(
    twin, dsn, client, results, pauses
):
    """Whatever its poll: the database wakes those who asked within the last minute."""
    pauses(POLL=600, POLL_HEARD=0.1)
    worker = twin.worker(dsn, store, "q", listen=True, poll=600, **QUICK).start()
    hears(worker)
    # Of items that are added nobody is told.
    job = client.enqueue_job("q", ["first"], seal=False)
    for item in ("first", "second"):
        wait_until(lambda item=item: item in results(), f"{item} is worked")
        client.add_items(job, ["second"])
    worker.stop()


def test_who_listens_asks_once_more_and_then_rarely(twin, dsn, db):
    """Once more, for what came while the database did not know yet that it waits."""
    running = twin.worker(dsn, store, "q", listen=True, poll=20, **QUICK)
    worker, naps = running.worker, []
    wake = worker._wake
    wait = wake.wait

    def nap(duration):
        if worker._hears:
            naps.append(duration)
            wake.set()
        if len(naps) == 4:
            worker.stop()
        return wait(duration)

    wake.wait = nap
    running.start()
    running.join()
    # It may begin to listen between the choice of a nap and the nap: then that one is told, too.
    assert naps[0] < 10
    assert all(duration >= 10 for duration in naps[2:])


def test_only_what_opens_more_work_makes_a_worker_ask_at_once(twin, dsn, client, db):
    async def handler(batch, conn):
        if batch.stage == "one":
            batch.emit([1])

    running = twin.worker(dsn, handler, "q", **QUICK)
    worker, looks = running.worker, []
    let_go = worker._let_go

    def seen(batches, *, look=False):
        looks.extend((batch.stage, look) for batch in batches)
        let_go(batches, look=look)

    worker._let_go = seen
    client.enqueue_job("q")
    client.enqueue_job("q", [1], stages=["one", "two"])
    barred = client.enqueue_job("q", [1], stages=["first", "last"], barriers=["last"], seal=False)
    client.add_items(barred, [1], "last")
    client.seal_job(barred)
    running.finish()
    assert sorted(looks) == [
        ("first", True),
        ("last", False),
        ("one", True),
        ("process", False),
        ("two", False),
    ]


def test_its_own_second_try_is_not_left_to_the_poll(twin, dsn, client, results, pauses):
    pauses(POLL=600)

    async def handler(batch, conn):
        if batch.attempt == 1:
            raise RuntimeError("not yet")
        await store(batch, conn)

    later = {"heartbeat": False, "retry_in": lambda _attempt: timedelta(seconds=0.3)}
    worker = twin.worker(dsn, handler, "q", listen=True, poll=600, **later).start()
    hears(worker)
    client.enqueue_job("q", ["again"])
    # Who listens would ask again after 15 seconds at the soonest.
    wait_until(results, "it is tried again", 14)
    worker.stop()


def test_of_two_second_tries_neither_is_left_to_the_poll(twin, dsn, client, results, pauses):
    pauses(POLL=600)
    pause = iter([0.3, 0.6])

    async def handler(batch, conn):
        if batch.attempt == 1:
            raise RuntimeError("not yet")
        await conn.execute("insert into public.result values (%s)", [json.dumps(batch.params)])

    later = {"heartbeat": False, "retry_in": lambda _attempt: timedelta(seconds=next(pause))}
    worker = twin.worker(dsn, handler, "q", listen=True, poll=600, **later).start()
    hears(worker)
    client.enqueue_jobs("q", [1, 2])
    wait_until(lambda: results() == [1, 2], "both are tried again", 14)
    worker.stop()


def test_a_second_try_is_not_forgotten_over_what_comes_before(twin, dsn, client, results, pauses):
    pauses(POLL=600)
    begun = threading.Event()

    async def handler(batch, conn):
        if batch.items == [0] and batch.attempt == 1:
            begun.set()
            raise RuntimeError("not yet")
        await store(batch, conn)

    later = {"heartbeat": False, "retry_in": lambda _attempt: timedelta(seconds=1.5)}
    worker = twin.worker(dsn, handler, "q", listen=True, poll=600, **later).start()
    hears(worker)
    client.enqueue_job("q", [0])
    assert begun.wait(20)
    for item in (1, 2):
        client.enqueue_job("q", [item])
        wait_until(lambda item=item: item in results(), "what came is worked")
    wait_until(lambda: results() == [0, 1, 2], "it is tried again", 14)
    worker.stop()


def test_a_worker_is_woken_whatever_the_encoding_of_its_sessions(
    twin, dsn, client, results, pauses
):
    pauses(POLL=600)
    latin = make_conninfo(dsn, client_encoding="latin1")
    worker = twin.worker(latin, store, "q\u00e9", listen=True, poll=600, **QUICK).start()
    hears(worker)
    for item in (1, 2):
        client.enqueue_job("q\u00e9", [item])
        wait_until(lambda item=item: item in results(), "it is woken", 14)
    worker.stop()


# Small print


def test_a_transaction_that_could_not_begin_keeps_no_connection(twin, dsn, client, results):
    taken, returned, counts = [], [], []

    def counting(call, calls):
        def count(*args, **kwargs):
            calls.append(args)
            return call(*args, **kwargs)

        return count

    async def handler(batch, conn):
        proxy.cut_before(b"BEGIN")
        with pytest.raises(psycopg.OperationalError):
            await store(batch, conn)
        counts.append((len(taken), len(returned)))
        await store(batch, conn)

    client.enqueue_job("q", [1])
    with Proxy(dsn) as proxy:
        worker = twin.worker(proxy.dsn, handler, "q", **QUICK)
        its = worker.worker._client
        its._take_alive = counting(its._take_alive, taken)
        its.pool.putconn = counting(its.pool.putconn, returned)
        worker.finish()
        assert proxy.cuts == 1
    assert results() == [1]
    assert [before - after for before, after in [*counts, (len(taken), len(returned))]] == [0, 0]


def test_a_batch_that_is_leased_again_is_held_under_its_new_lease(twin, dsn, client, db, notes):
    again, go_on = threading.Event(), threading.Event()

    async def handler(batch, conn):
        if batch.lease_epoch == 1:
            client.release_batch(batch.batch_id, batch.lease_epoch)
            await twin.wait_for(again)
        else:
            again.set()
            await twin.wait_for(go_on)

    client.enqueue_job("q", [1])
    worker = twin.worker(dsn, handler, "q", concurrency=2, drain_timeout=0.1, **QUICK).start()
    wait_until(lambda: any("result refused" in note for note in notes()), "the first is refused")
    worker.stop()
    go_on.set()
    assert db.execute("select state::text, lease_epoch from pyjobs_internal.batch").fetchall() == [
        ("pending", 2)
    ]


def test_a_keeper_that_is_closed_starts_no_process(dsn):
    keeper = LeaseKeeper(dsn, 60.0, None, get_logger("pyjobs.worker"))
    keeper.close()
    keeper.keep([Batch.of((1, 1, 1, 1))])
    assert keeper._process is None


def test_a_heartbeat_is_due_by_the_age_of_the_lease_and_not_put_off():
    heart = Heart({"conninfo": "", "lease": 60.0, "beat": 10.0, "parent": 0})
    start = time.monotonic()
    heart.heed({"keep": [[1, 1]], "until": None, "age": 50.0})
    heart.heed({"keep": [[2, 1]], "until": None})
    first, second = heart.due[1, 1], heart.due[2, 1]
    assert first < start
    assert second > start
    heart.heed({"keep": [[1, 1], [2, 1]], "until": 100.0})
    assert heart.due == {(1, 1): first, (2, 1): second}


def test_a_heartbeat_starts_without_the_package_and_without_psycopg():
    """Both take longer to import than a set of quick jobs takes to work."""
    said = subprocess.run(
        [
            sys.executable,
            "-Pc",
            "import runpy, sys\n"
            f"runpy.run_path({_heartbeat.__file__!r})\n"
            "print({name.partition('.')[0] for name in sys.modules} & {'pyjobs', 'psycopg'})",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == "set()"


# Settings and the log


@pytest.mark.parametrize("cls", [pyjobs.Worker, pyjobs.AsyncWorker])
def test_settings_that_would_do_nothing_are_refused(cls):
    with pytest.raises(TypeError, match="not the string"):
        cls(None, None, "q")
    with pytest.raises(ValueError, match="at least 1"):
        cls(None, None, ["q"], concurrency=0)


def test_what_the_database_refuses_ends_the_worker(twin, dsn, client):
    with pytest.raises(pyjobs.InvalidArgument, match="max_batches"):
        twin.worker(dsn, store, "q", max_batches=0, **QUICK).finish()


def test_every_line_of_the_log_says_who_and_what(twin, dsn, client, notes):
    client.enqueue_job("q", [1])
    worker = twin.worker(dsn, store, "q", name="w-1", **QUICK)
    worker.finish()
    assert all("worker=w-1" in note for note in notes())
    (recorded,) = [note for note in notes() if note.startswith("batch recorded")]
    for key in ("job=", "batch=", "epoch=1", "stage=process", "attempt=1", "status=SUCCESS"):
        assert key in recorded
    assert any(note.startswith("job has ended") for note in notes())


def test_an_application_that_has_configured_structlog_gets_its_lines(twin, dsn, client):
    lines = []
    structlog.configure(processors=[lambda _logger, _method, event: lines.append(event) or ""])
    try:
        client.enqueue_job("q", [1])
        twin.worker(dsn, store, "q", name="w-1", **QUICK).finish()
    finally:
        structlog.reset_defaults()
    recorded = [line for line in lines if line["event"] == "batch recorded"]
    assert [(line["worker"], line["epoch"]) for line in recorded] == [("w-1", 1)]


def test_a_worker_needs_no_more_than_the_workers_role(twin, database, client, db, results):
    db.execute("grant insert on public.result to public")
    client.enqueue_job("q", [1, 2])
    twin.worker(database.dsn_of("worker"), store, "q", lease=1, reap_every=0.05).finish()
    assert results() == [1, 2]
