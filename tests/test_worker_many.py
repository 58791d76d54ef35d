"""A worker of many small jobs: leased together, recorded together, each alone where it must be.

Each test runs with the synchronous and the asynchronous worker.

Broken by hand, each seen red: results recorded apart from the rows or the items that go with them,
what was not begun kept until the last handler ends, a bad result that takes others with it, a late
one told as recorded, every result recorded alone, counters left out, a recorder that ends with the
lanes and leaves the last results, a set claimed ahead of slow ones or two ahead of quick ones, one
that was claimed ahead kept at a stop or handed to the handler after a cancel, leases of what waits
not kept, lanes that say that they wait before it is their turn, a set handed over whose answer is
older than its lease, the age of a lease not told, each batch tried at a stop with the server away,
one that is not wanted left leased after a lost connection.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from datetime import timedelta
from decimal import Decimal

import psycopg
import pytest

import pyjobs
from pyjobs import JobStatus
from tests.support import wait_until
from tests.support.proxy import Proxy

QUICK = {"heartbeat": False, "retry_in": lambda _attempt: timedelta(0), "max_jobs": 10}
DONE = [JobStatus.SUCCESS]


@pytest.fixture
def client(dsn, db):
    db.execute("create table public.result (item jsonb)")
    with pyjobs.Client(dsn) as client:
        yield client


@pytest.fixture
def notes(caplog):
    caplog.set_level(logging.INFO, logger="pyjobs.worker")
    return lambda: [record.getMessage() for record in caplog.records]


def transactions(db):
    """In how many transactions the batches were recorded."""
    return db.execute("select count(distinct xmin::text) from pyjobs_internal.batch").fetchone()[0]


def statuses(client, jobs):
    return [client.job(job).status for job in jobs]


def test_many_small_jobs_are_recorded_together(twin, dsn, db, client):
    async def handler(batch, conn):
        batch.count(seen=batch.params)
        if batch.params % 7 == 3:
            batch.fail(0, "odd")

    jobs = client.enqueue_jobs("q", list(range(40)))
    worker = twin.worker(dsn, handler, "q", **QUICK)
    worker.finish()
    failed = [n for n in range(40) if n % 7 == 3]
    assert [n for n, s in enumerate(statuses(client, jobs)) if s is JobStatus.FAILURE] == failed
    assert set(statuses(client, jobs)) == {JobStatus.SUCCESS, JobStatus.FAILURE}
    for number, job in enumerate(jobs):
        (stage,) = client.job_progress(job).stages
        assert stage.counters == {"seen": number}
        assert stage.failed == (number in failed)
    assert transactions(db) < 30
    assert client.audit_job() == []


def test_who_writes_rows_or_emits_is_recorded_with_them(twin, dsn, db, client):
    async def handler(batch, conn):
        if batch.stage == "split":
            batch.emit(["emitted", "too"])
        elif batch.params == "write":
            await conn.execute("insert into public.result values ('1')")

    writers = client.enqueue_jobs("q", ["write", "none", "write"])
    splitter = client.enqueue_job("q", ["x"], stages=["split", "take"])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert set(statuses(client, [*writers, splitter])) == {JobStatus.SUCCESS}
    assert db.execute("select count(*) from public.result").fetchone() == (2,)
    same = db.execute(
        "select count(*) from public.result r join pyjobs_internal.batch b on b.xmin = r.xmin"
    ).fetchone()
    assert same == (2,)
    assert [stage.processed for stage in client.job_progress(splitter).stages] == [1, 2]


def test_a_handler_that_raises_gives_back_its_own_batch_alone(twin, dsn, client, notes):
    tries = []

    async def handler(batch, conn):
        tries.append(batch.params)
        if batch.params == 2 and batch.attempt < 3:
            raise ValueError("not yet")

    jobs = client.enqueue_jobs("q", [1, 2, 3])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert set(statuses(client, jobs)) == {JobStatus.SUCCESS}
    assert sorted(tries) == [1, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda batch: batch.fail(5, "there is no such item"), "below 1"),
        (lambda batch: batch.count(seen=math.nan), "not JSON"),
        (lambda batch: batch.count(seen=Decimal(1)), "Decimal"),
        (lambda batch: batch.count(**{"se\0en": 1}), "u0000"),
    ],
    ids=["unknown item", "not a number", "no JSON", "no text"],
)
def test_a_bad_result_is_its_own_batch_s_alone(twin, dsn, client, notes, spoil, told):
    async def handler(batch, conn):
        if batch.params == 2 and batch.attempt == 1:
            spoil(batch)

    jobs = client.enqueue_jobs("q", [1, 2, 3])
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert set(statuses(client, jobs)) == {JobStatus.SUCCESS}
    (failed,) = [note for note in notes() if "batch failed" in note]
    assert told in failed


def test_a_result_that_is_late_is_told_as_refused_and_the_others_count(
    twin, dsn, db, client, notes
):
    async def handler(batch, conn):
        if batch.params == 2 and batch.attempt == 1:
            # Another has it by now.
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute(
                    "select pyjobs.release_batch(%s, %s)", [batch.batch_id, batch.lease_epoch]
                )
                other.execute("select from pyjobs.claim_next_batch(%s, 'x')", [batch.job_id])

    jobs = client.enqueue_jobs("q", [1, 2, 3])
    worker = twin.worker(dsn, handler, "q", **QUICK).start()
    wait_until(lambda: any("result refused" in note for note in notes()), "it is refused")
    wait_until(
        lambda: statuses(client, jobs) == [JobStatus.SUCCESS, JobStatus.STARTED, JobStatus.SUCCESS],
        "the others are recorded",
    )
    worker.stop()
    assert len([note for note in notes() if "batch recorded" in note]) == 2


def test_at_a_stop_what_is_finished_is_recorded_and_the_rest_given_back(twin, dsn, db, client):
    seen = []
    workers = []

    async def handler(batch, conn):
        seen.append(batch.params)
        if len(seen) == 3:
            workers[0].worker.stop()

    jobs = client.enqueue_jobs("q", list(range(8)))
    workers.append(twin.worker(dsn, handler, "q", **QUICK))
    workers[0].start().join()
    assert statuses(client, jobs[:3]) == [JobStatus.SUCCESS] * 3
    assert seen == [0, 1, 2]
    left = db.execute(
        "select state::text, attempt from pyjobs_internal.batch where state <> 'recorded'"
    ).fetchall()
    assert left == [("pending", 0)] * 5


def test_what_was_not_begun_is_given_back_before_the_last_handler_ends(twin, dsn, db, client):
    begun, go_on = threading.Event(), threading.Event()
    workers = []

    async def handler(batch, conn):
        if batch.params == 0:
            begun.set()
            await twin.wait_for(go_on)
        else:
            await twin.wait_for(begun)
            workers[0].worker.stop()

    jobs = client.enqueue_jobs("q", list(range(5)))
    workers.append(twin.worker(dsn, handler, "q", concurrency=2, **QUICK))
    workers[0].start()
    waiting = "select count(*) from pyjobs_internal.batch where state = 'pending' and attempt = 0"
    try:
        assert begun.wait(20)
        wait_until(
            lambda: db.execute(waiting).fetchone() == (3,) and statuses(client, jobs[1:2]) == DONE,
            "the rest is given back",
        )
    finally:
        go_on.set()
    workers[0].join()
    assert statuses(client, jobs[:2]) == DONE * 2


def test_it_is_one_or_the_other():
    for cls in (pyjobs.Worker, pyjobs.AsyncWorker):
        with pytest.raises(ValueError, match="max_jobs"):
            cls(None, None, ["q"], max_jobs=0)
        with pytest.raises(ValueError, match="one of them"):
            cls(None, None, ["q"], max_jobs=2, max_batches=2)


def test_a_record_whose_answer_is_lost_counts_once(twin, dsn, db, client, notes):
    async def handler(batch, conn):
        batch.count(seen=1)

    jobs = client.enqueue_jobs("q", [1, 2, 3])
    with Proxy(dsn) as proxy:
        proxy.cut_after(b"record_batches")
        twin.worker(proxy.dsn, handler, "q", **QUICK).finish()
        assert proxy.cuts == 1
    assert set(statuses(client, jobs)) == {JobStatus.SUCCESS}
    assert [client.job_progress(job).stages[0].counters for job in jobs] == [{"seen": 1}] * 3
    assert len([note for note in notes() if "batch recorded" in note]) == 3


def test_more_than_one_call_can_take_are_recorded_too(twin, dsn, client, monkeypatch):
    for module in ("pyjobs._async.worker", "pyjobs._sync.worker"):
        monkeypatch.setattr(f"{module}.MOST_TOGETHER", 2)

    async def handler(batch, conn):
        pass

    jobs = client.enqueue_jobs("q", list(range(9)))
    twin.worker(dsn, handler, "q", **QUICK).finish()
    assert statuses(client, jobs) == DONE * 9


def test_the_time_limit_is_from_the_call_of_the_handler_on(twin, dsn, client):
    unwanted = []

    async def handler(batch, conn):
        if batch.params == 0:
            await twin.until(lambda: batch.cancelled)
        unwanted.append(batch.cancelled)

    jobs = client.enqueue_jobs("q", list(range(4)))
    limits = {"heartbeat": True, "time_limit": 1.0, "lease": 60.0}
    twin.worker(dsn, handler, "q", **{**QUICK, **limits}).finish()
    assert unwanted == [True, False, False, False]
    assert statuses(client, jobs) == DONE * 4


# Claimed ahead


@pytest.fixture
def ahead(monkeypatch):
    """``ahead(seconds)``: how quick a set must be for the next to be claimed ahead of it."""

    def within(seconds):
        for module in ("pyjobs._async.worker", "pyjobs._sync.worker"):
            monkeypatch.setattr(f"{module}.AHEAD", seconds)

    return within


@pytest.fixture
def asked():
    """``asked(running)``: how many batches wait for a lane at each question for more."""

    def watch(running):
        waiting = []
        call = running.worker._client.tuples

        def tuples(cls, name, **arguments):
            if name == "claim_jobs":
                waiting.append(len(running.worker._claimed))
            return call(cls, name, **arguments)

        running.worker._client.tuples = tuples
        return waiting

    return watch


def a_moment():
    """Time enough to ask for more, for who would: a condition for `until`."""
    looks = iter([False, False, False, True])
    return lambda: next(looks)


def leased(db):
    return {row[0] for row in db.execute("select job_id from pyjobs.batch where state = 'leased'")}


SETS = {**QUICK, "max_jobs": 3}


def test_one_set_is_claimed_ahead_and_given_back_at_a_stop(twin, dsn, db, client, ahead, asked):
    ahead(math.inf)
    workers = []
    seen = []

    async def handler(batch, conn):
        seen.append(batch.job_id)
        if len(seen) == 1:
            # The rest of the first set, and the next: no more, whatever is begun of the first.
            await twin.until(lambda: len(leased(db) - set(seen)) == 5)
        elif len(seen) == 3:
            await twin.until(a_moment())
            workers[0].worker.stop()

    jobs = client.enqueue_jobs("q", list(range(12)))
    workers.append(twin.worker(dsn, handler, "q", **SETS))
    waiting = asked(workers[0])
    workers[0].start().join()
    assert seen == jobs[:3]
    assert len(waiting) == 2
    assert max(waiting) <= 2
    rows = db.execute(
        "select job_id, state::text, attempt, lease_epoch from pyjobs_internal.batch order by id"
    ).fetchall()
    assert rows[:3] == [(job, "recorded", 1, 1) for job in jobs[:3]]
    # At no attempt; and of the others nobody has asked for any.
    assert [row[:3] for row in rows[3:]] == [(job, "pending", 0) for job in jobs[3:]]
    assert [job for job, _, _, epoch in rows if epoch] == jobs[:6]


def test_what_is_claimed_while_the_worker_stops_is_given_back(twin, dsn, db, client, ahead):
    ahead(math.inf)
    seen = []

    async def handler(batch, conn):
        seen.append(batch.job_id)
        await twin.wait_for(stopped)

    jobs = client.enqueue_jobs("q", list(range(6)))
    stopped = threading.Event()
    running = twin.worker(dsn, handler, "q", **SETS)
    call = running.worker._client.tuples

    def claim_after_a_stop(cls, name, **arguments):
        if name == "claim_jobs" and leased(db):
            running.worker.stop()
            stopped.set()
        return call(cls, name, **arguments)

    running.worker._client.tuples = claim_after_a_stop
    running.start().join()
    assert seen == jobs[:1]
    rows = db.execute(
        "select state::text, attempt, lease_epoch > 0 from pyjobs_internal.batch order by id"
    ).fetchall()
    assert rows == [("recorded", 1, True)] + [("pending", 0, True)] * 5


def test_sets_of_slow_jobs_are_not_claimed_ahead(twin, dsn, client, ahead, asked):
    ahead(0)

    async def handler(batch, conn):
        await twin.until(a_moment())

    jobs = client.enqueue_jobs("q", list(range(12)))
    running = twin.worker(dsn, handler, "q", **SETS)
    waiting = asked(running)
    running.finish()
    assert len(waiting) > 4
    assert set(waiting) == {0}
    assert statuses(client, jobs) == DONE * 12


@pytest.mark.parametrize("grace", [0, 3600])
def test_what_is_cancelled_while_it_waits_is_not_handed_over(
    twin, dsn, db, client, ahead, grace, notes
):
    ahead(math.inf)
    seen = []

    async def handler(batch, conn):
        seen.append(batch.job_id)
        if batch.job_id == jobs[0]:
            await twin.until(lambda: jobs[4] in leased(db))
            client.cancel_job(jobs[4], grace=timedelta(seconds=grace))
            await twin.until(lambda: any("not wanted any more" in note for note in notes()))

    jobs = client.enqueue_jobs("q", list(range(6)))
    worker = twin.worker(dsn, handler, "q", **{**SETS, "heartbeat": True, "lease": 1.0})
    worker.finish()
    assert seen == [*jobs[:4], jobs[5]]
    assert statuses(client, jobs) == [*DONE * 4, JobStatus.REVOKED, *DONE]


def test_leases_of_what_waits_count_from_the_claim_and_are_kept(twin, dsn, db, client, ahead):
    ahead(math.inf)
    seen = []

    def expiries():
        rows = db.execute("select lease_expires_at from pyjobs.batch where state = 'leased'")
        return sorted(row[0] for row in rows)

    async def handler(batch, conn):
        seen.append((batch.job_id, batch.attempt))
        if len(seen) == 1:
            await twin.until(lambda: len(leased(db)) == 6)
            last = expiries()[-1]
            assert last <= db.execute("select clock_timestamp() + interval '1.5 s'").fetchone()[0]
            await twin.until(lambda: expiries()[0] > last + timedelta(seconds=1))

    jobs = client.enqueue_jobs("q", list(range(6)))
    twin.worker(dsn, handler, "q", **{**SETS, "heartbeat": True, "lease": 1.5}).finish()
    assert seen == [(job, 1) for job in jobs]
    assert statuses(client, jobs) == DONE * 6


def test_all_lanes_work_where_there_is_enough_for_them(twin, dsn, db, client):
    barrier = threading.Barrier(3)

    async def handler(batch, conn):
        arrived = threading.Event()

        def arrive():
            barrier.wait(20)
            arrived.set()

        threading.Thread(target=arrive, daemon=True).start()
        await twin.wait_for(arrived)

    jobs = client.enqueue_jobs("q", list(range(9)))
    twin.worker(dsn, handler, "q", concurrency=3, **SETS).finish()
    assert statuses(client, jobs) == DONE * 9


def test_idle_lanes_are_given_what_comes_while_others_are_busy(twin, dsn, client, asked):
    seen = []
    go_on = threading.Event()

    async def handler(batch, conn):
        seen.append(batch.job_id)
        await twin.wait_for(go_on)

    worker = twin.worker(dsn, handler, "q", concurrency=4, **QUICK)
    questions = asked(worker)
    worker.start()
    try:
        wait_until(lambda: len(questions) > 2, "all lanes wait")
        for number in range(4):
            job = client.enqueue_job("q", [number])
            wait_until(lambda job=job: job in seen, "an idle lane takes it")
    finally:
        go_on.set()
        worker.stop()


def shifted_clock(monkeypatch):
    """The worker's clock, and a list whose sum it is ahead by."""
    shifts = [0.0]
    for module in ("pyjobs._async.worker", "pyjobs._sync.worker"):
        monkeypatch.setattr(f"{module}.monotonic", lambda: time.monotonic() + sum(shifts))
    return shifts


@pytest.mark.parametrize("options", [{"max_jobs": 3}, {"max_jobs": 1}], ids=["set", "one"])
def test_an_answer_older_than_the_lease_is_not_handed_over(
    twin, dsn, db, client, monkeypatch, options
):
    shifts = shifted_clock(monkeypatch)
    seen = []

    async def handler(batch, conn):
        seen.append((batch.job_id, batch.attempt, batch.lease_epoch))

    jobs = client.enqueue_jobs("q", [1])
    running = twin.worker(dsn, handler, "q", **{**QUICK, **options})
    call = running.worker._client.tuples

    def late(cls, name, **arguments):
        if len(shifts) == 1 and name in {"claim_jobs", "claim_next_job"}:
            shifts.append(61.0)
        return call(cls, name, **arguments)

    running.worker._client.tuples = late
    running.finish()
    assert seen == [(jobs[0], 1, 2)]
    assert statuses(client, jobs) == DONE


@pytest.mark.parametrize("options", [{"max_jobs": 4}, {"max_jobs": 1, "max_batches": 4}])
def test_with_the_server_away_a_stop_tries_to_give_back_once(twin, dsn, client, ahead, options):
    ahead(math.inf)
    tries = []
    workers = []

    async def handler(batch, conn):
        await twin.until(lambda: len(workers[0].worker._held) >= 4)
        proxy.down()
        workers[0].worker.stop()

    client.enqueue_job("q", list(range(4)), batch_size=1)
    client.enqueue_jobs("q", list(range(8)))
    with Proxy(dsn) as proxy:
        workers.append(twin.worker(proxy.dsn, handler, "q", **{**QUICK, **options}))
        worker = workers[0].worker
        call = worker._bounded

        def bounded(what, *arguments):
            if what.__name__ == "release_batch":
                tries.append(arguments)
            return call(what, *arguments)

        worker._bounded = bounded
        workers[0].start().join()
    assert len(tries) == 1


def test_what_is_not_wanted_is_given_back_though_the_connection_is_lost(twin, dsn, client, ahead):
    ahead(0)
    workers = []
    unwanted = []

    async def handler(batch, conn):
        if not unwanted:
            proxy.cut_before(b"release_batch")
            unwanted.extend(workers[0].worker._claimed)
            for other in unwanted:
                other.cancel("it is not wanted under this lease")

    jobs = client.enqueue_jobs("q", list(range(3)))
    with Proxy(dsn) as proxy:
        workers.append(twin.worker(proxy.dsn, handler, "q", **SETS))
        workers[0].finish()
        assert proxy.cuts == 1
    assert len(unwanted) == 2
    assert statuses(client, jobs) == DONE * 3


def test_the_keeper_is_told_how_old_a_lease_is(twin, dsn, client, monkeypatch):
    shifts = shifted_clock(monkeypatch)
    ages = []
    monkeypatch.setattr(
        "pyjobs._keeper.LeaseKeeper.keep", lambda _self, _batches, age=0.0: ages.append(age)
    )

    async def handler(batch, conn):
        pass

    jobs = client.enqueue_jobs("q", [1])
    running = twin.worker(dsn, handler, "q", **{**QUICK, "heartbeat": True})
    call = running.worker._client.tuples

    def late(cls, name, **arguments):
        shifts.append(30.0 if name == "claim_jobs" and not ages else 0.0)
        return call(cls, name, **arguments)

    running.worker._client.tuples = late
    running.finish()
    assert [age // 30 for age in ages] == [1]
    assert statuses(client, jobs) == DONE
