"""One batch of each of many jobs, claimed and recorded in a few statements for all of them.

It must come to what the same does one by one, and wait for the same.

Each guard was taken out once, and a test seen to fail for it:

claim_from_jobs: no serving lock         a_cancel_waits_for_a_claim_from_many
claim_from_jobs: status before the lock  a_claim_from_many_reads_the_status_after_it_has_its_locks
claim_from_jobs: paused, any state       of_what_may_not_be_served
claim_from_jobs: a paused queue          a_queue_that_is_paused_while_a_claim_chooses_gives_nothing
claim_from_jobs: several stages          what_a_job_of_several_stages_gives
claim_from_jobs: waits for batches       does_not_wait_for_a_batch_that_another_takes
claim_from_jobs: what waits for a time   what_waits_for_a_time_is_not_taken_before
claim_from_jobs: no mark, no start       by_sets_is_as_one_by_one
claim_from_offers: takes what is held    a_claim_from_many_gives_way_to_an_open_one
claim_from_offers: no eighth time        what_an_open_claim_holds_is_served_too_now_and_then
is_plain: other batches, seal, stages    a_job_that_has_more_goes_on
is_plain: failed items                   by_sets_is_as_one_by_one[failed]
record_plain: no epoch, no state         a_lease_that_was_lost_before_it_was_recorded
record_plain: no look afterwards         a_job_that_was_cancelled_before_it_was_recorded
record_plain: jobs not locked            who_ends_many_jobs_is_in_the_way_of_a_cancel
record_plain: batches in any order       batches_are_locked_job_by_job
record_plain: leaves the marks           by_sets_is_as_one_by_one
record_batches: plain ones first         batches_are_locked_job_by_job
end_simple: past a cancel                cancelled_before_its_last_batch_ends_it[open-1]
end_simple: no sums, leaves the mark     one_batch_keeps_its_sums_and_no_mark
end_simple: sums of one, failed items    the_last_of_several_batches_ends_the_job
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session, make_operators_patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.calls import Row


@pytest.fixture
def a(new_session) -> Session:
    return new_session()


@pytest.fixture
def b(new_session) -> Session:
    return new_session()


@pytest.fixture
def calls(new_session) -> Iterator[Session]:
    """The session that sets the scene and looks at the end. Afterwards the rules must hold."""
    session = new_session()
    yield session
    assert session.audit() == []
    assert_rules(session.conn)


@pytest.fixture
def patient(calls) -> None:
    make_operators_patient(calls.conn)


def take(session: Session, jobs: int, *queues: str) -> list[Row]:
    """One batch of each of so many jobs."""
    return session.rows(
        "select * from pyjobs.claim_jobs('w', %s, %s)", list(queues or ["default"]), jobs
    )


def taken(session: Session, jobs: int, *queues: str) -> list[int]:
    return [batch["job_id"] for batch in take(session, jobs, *queues)]


def record_many(session: Session, batches: list[Row], **results: Any) -> list[str]:
    """Outcomes; ``failed`` and ``counters`` are JSON."""
    rows = session.rows(
        "select * from pyjobs.record_batches(%s::bigint[], %s::bigint[], %s, %s)",
        [batch["batch_id"] for batch in batches],
        [batch["lease_epoch"] for batch in batches],
        results.get("failed"),
        results.get("counters"),
    )
    return [row["outcome"] for row in rows]


# By sets and one by one.


@pytest.mark.parametrize("result", ["nothing", "counters", "failed"])
def test_by_sets_is_as_one_by_one(calls, result):
    """All that can be seen of jobs that were claimed and recorded either way."""
    calls.settable_clock()
    calls.mark_every_claim()
    for queue in ("sets", "singly"):
        calls.enqueue(queue, params={"n": 1})
        calls.enqueue(queue, items=3)
        again = calls.enqueue(queue, items=2, batch_size=2, max_attempts=3)
        (batch,) = calls.claim(again)
        calls.release(batch, "spoilt")
        third = calls.enqueue(queue, items=3, batch_size=3, failure_threshold=0.5)
        (batch,) = calls.claim(third)
        calls.record(batch, failed=[0, 2])
        calls.retry(third, failed_only=True)
    sets = take(calls, 9, "sets")
    singly = [calls.ask("w", "singly")[0] for _ in range(4)]

    def shown(batch: Row) -> dict[str, Any]:
        hidden = {"job_id", "batch_id", "lease_expires_at", "queue"}
        return {name: value for name, value in batch.items() if name not in hidden}

    def jobs(batches: list[Row]) -> list[Any]:
        found = []
        for batch in batches:
            row = calls.row("select * from pyjobs.job where id = %s", batch["job_id"])
            hidden = ("id", "queue", "_at", "age", "duration", "seconds")
            found.append(
                (
                    {k: v for k, v in row.items() if not k.endswith(hidden)},
                    {k: type(v) for k, v in row.items()},
                    calls.steps(batch["job_id"]),
                    [h["reason"] for h in calls.history(batch["job_id"])],
                    calls.progress(batch["job_id"])["stages"],
                    calls.rows(
                        "select count(*), (select count(*) from pyjobs_internal.claim_mark m"
                        " where m.job_id = s.job_id) as marks from pyjobs_internal.job_start s"
                        " where s.job_id = %s group by s.job_id",
                        batch["job_id"],
                    ),
                )
            )
        return found

    assert [shown(batch) for batch in sets] == [shown(batch) for batch in singly]
    assert len(sets) == 4
    assert {calls.status(batch["job_id"]) for batch in sets} == {"STARTED"}
    assert jobs(sets) == jobs(singly)

    counters = {"n": 1, "x": 25} if result == "counters" else {}
    failed = [0] if result == "failed" else []
    given = {
        "counters": json.dumps([counters] * 4) if counters else None,
        "failed": json.dumps([[{"index": i, "error": f"error {i}"} for i in failed]] * 4),
    }
    assert record_many(calls, sets, **given) == ["recorded"] * 4
    for batch in singly:
        calls.record(batch, failed=failed, counters=counters)
    assert jobs(sets) == jobs(singly)
    ended = "FAILURE" if result == "failed" else "SUCCESS"
    assert [calls.status(batch["job_id"]) for batch in sets].count("STARTED") == 1
    assert ended in {calls.status(batch["job_id"]) for batch in sets}


def test_a_start_is_noted_once(calls):
    one, two = calls.enqueue(items=3), calls.enqueue(items=3)
    for _ in range(3):
        assert sorted(taken(calls, 2)) == [one, two]
    assert calls.value("select count(*) from pyjobs_internal.job_start") == 2


@pytest.mark.parametrize("more", ["batch", "seal", "stage", "later batch"])
def test_a_job_that_has_more_goes_on(calls, more):
    plain = calls.enqueue(items=1)
    stages = ["one", "two"] if more in ("stage", "later batch") else ["one"]
    job = calls.enqueue(items=2 if more == "batch" else 1, stages=stages, seal=False)
    if more == "later batch":
        calls.add(job, [1], "two")
    if more != "seal":
        calls.seal(job)
    first = min(calls.claim(job, 2), key=lambda batch: batch["batch_id"])
    assert record_many(calls, [*calls.claim(plain), first]) == ["recorded", "recorded"]
    assert calls.status(plain) == "SUCCESS"
    assert calls.status(job) == ("SUCCESS" if more == "stage" else "STARTED")
    assert calls.audit() == []
    assert_rules(calls.conn)
    if more == "seal":
        calls.add(job, [1])
        calls.seal(job)
    calls.do(
        "select pyjobs.release_batch(id, lease_epoch) from pyjobs.batch where state = 'leased'"
    )
    calls.finish(job)
    assert calls.ends_of(job) == ["SUCCESS"]


# Who is served.


@pytest.mark.parametrize(
    "stop",
    ["pause_job({})", "quarantine_job({}, 'odd')", "cancel_job({})"],
    ids=["paused", "set aside", "cancelled"],
)
def test_of_what_may_not_be_served(calls, stop):
    jobs = [calls.enqueue(items=2) for _ in range(3)]
    # A cancel with a lease out.
    calls.claim(jobs[1])
    calls.do("select pyjobs." + stop.format(jobs[1]))
    assert taken(calls, 3) == [jobs[0], jobs[2]]
    assert sorted(taken(calls, 3)) == [jobs[0], jobs[2]]
    assert taken(calls, 3) == []


@pytest.mark.parametrize("barriers", [[], ["two"]], ids=["open", "barrier"])
def test_what_a_job_of_several_stages_gives(calls, barriers):
    """As one by one: later stages first, and nothing behind a barrier."""
    plain = calls.enqueue(items=3)
    job = calls.enqueue(items=2, stages=["one", "two"], barriers=barriers, seal=False)
    calls.add(job, ["later"], "two")
    calls.seal(job)
    given = [{b["job_id"]: b["stage"] for b in take(calls, 2)} for _ in range(3)]
    assert [g[plain] for g in given] == ["process"] * 3
    assert [g.get(job) for g in given] == (
        ["one", "one", None] if barriers else ["two", "one", "one"]
    )


def test_a_claim_from_many_gives_way_to_an_open_one(calls, a):
    jobs = [calls.enqueue(items=2) for _ in range(4)]
    assert taken(a.begin(), 2) == jobs[:2]
    assert taken(calls, 2) == jobs[2:]
    a.rollback()
    assert sorted(taken(calls, 4)) == jobs


def test_what_an_open_claim_holds_is_served_too_now_and_then(calls, a):
    """Its holder may stay open for long."""
    held, *free = (calls.enqueue(items=40) for _ in range(4))
    assert a.begin().ask("w", "default")[0]["job_id"] == held
    served = [job for _ in range(16) for job in taken(calls, 2)]
    assert 1 <= served.count(held) <= 4
    assert {served.count(job) for job in free} <= {9, 10, 11}
    a.rollback()


def test_a_claim_from_many_does_not_wait_for_a_batch_that_another_takes(calls, a, b):
    jobs = [calls.enqueue(items=1) for _ in range(3)]
    a.begin().claim(jobs[1])  # not by its offer, which is free
    claim = b.start(taken, b, 3)
    assert not b.waits_or_ends(claim)
    assert claim.result(SOON) == [jobs[0], jobs[2]]
    a.rollback()
    assert taken(calls, 3) == [jobs[1]]


def test_what_waits_for_a_time_is_not_taken_before(calls, a):
    """Though its job's offer is due, for a batch that another is just taking."""
    plain, job = calls.enqueue(items=2), calls.enqueue(items=2)
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.release_batch(%s, 1, 'busy', '1 hour')", batch["batch_id"])
    a.begin().claim(job)
    assert taken(calls, 2) == [plain]
    a.rollback()
    assert sorted(taken(calls, 2)) == [plain, job]
    assert taken(calls, 2) == []


# Cancels, and what else comes while a claim or a record is on its way.


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_cancel_waits_for_a_claim_from_many(calls, a, b, patient, end):
    jobs = [calls.enqueue(items=2) for _ in range(2)]
    batches = take(a.begin(), 2)
    cancel = b.start(b.cancel, jobs[1], "0")
    b.waits_for(a)
    assert calls.claim(jobs[1]) == []
    getattr(a, end)()
    assert cancel.result(SOON) == "REVOKED"
    if end == "commit":
        assert record_many(a, batches) == ["recorded", "stale"]


def test_a_claim_from_many_reads_the_status_after_it_has_its_locks(calls, a, b, stops):
    jobs = [calls.enqueue(items=2) for _ in range(2)]
    stops.before("serving_key", a)
    claim = a.start(taken, a, 2)
    a.waits_for(stops.holder)
    assert b.cancel(jobs[1]) == "REVOKED"
    stops.go("serving_key", a)
    assert claim.result(SOON) == jobs[:1]


def test_a_queue_that_is_paused_while_a_claim_chooses_gives_nothing(calls, a, b, stops):
    jobs = [calls.enqueue(queue, items=2) for queue in ("q", "r", "r")]
    stops.before("claim_from_jobs", a)
    claim = a.start(taken, a, 3, "q", "r")
    a.waits_for(stops.holder)
    b.do("select pyjobs.pause_queue('r')")
    stops.go("claim_from_jobs", a)
    assert claim.result(SOON) == jobs[:1]
    calls.do("select pyjobs.resume_queue('r')")
    assert sorted(taken(calls, 3, "q", "r")) == jobs


@pytest.mark.parametrize("how", ["leased again", "given back", "recorded"])
def test_a_lease_that_was_lost_before_it_was_recorded(calls, a, b, stops, how):
    jobs = [calls.enqueue(items=1) for _ in range(3)]
    batches = take(calls, 3)
    stops.before("record_plain", a)
    call = a.start(record_many, a, batches, counters='[{"n": 1}, {"n": 1}, {"n": 1}]')
    a.waits_for(stops.holder)
    if how == "recorded":
        b.record(batches[1], counters={"n": 2})
    else:
        b.release(batches[1])
        if how == "leased again":
            (again,) = b.claim(jobs[1])
    stops.go("record_plain", a)
    lost = "already" if how == "recorded" else "stale"
    assert call.result(SOON) == ["recorded", lost, "recorded"]
    if how == "given back":
        (again,) = b.claim(jobs[1])
    if how != "recorded":
        b.record(again, counters={"n": 2})
    assert [calls.ends_of(job) for job in jobs] == [["SUCCESS"]] * 3
    stages = [calls.progress(job)["stages"][0] for job in jobs]
    assert [stage["counters"]["n"] for stage in stages] == [1, 2, 1]


@pytest.mark.parametrize("how", ["wait", "before"])
def test_a_batch_that_another_has_in_hand_is_waited_for(calls, a, b, how):
    """It may be given back and leased again while we wait."""
    jobs = [calls.enqueue(items=1) for _ in range(2)]
    batches = take(calls, 2)
    b.begin().release(batches[1])
    if how == "wait":
        b.claim(jobs[1])
    call = a.start(record_many, a, batches)
    a.waits_for(b)
    b.commit()
    assert call.result(SOON) == ["recorded", "stale"]


def test_a_job_that_was_cancelled_before_it_was_recorded(calls, a, b, stops):
    jobs = [calls.enqueue(items=1) for _ in range(3)]
    batches = take(calls, 3)
    stops.before("record_plain", a)
    call = a.start(record_many, a, batches)
    a.waits_for(stops.holder)
    assert b.cancel(jobs[1]) == "CANCELING"
    stops.go("record_plain", a)
    assert call.result(SOON) == ["recorded"] * 3
    assert [calls.status(job) for job in jobs] == ["SUCCESS", "REVOKED", "SUCCESS"]


def test_who_ends_many_jobs_is_in_the_way_of_a_cancel(calls, a, b, connect):
    """From where it has read that they can end."""
    calls.mark_every_claim()
    jobs = [calls.enqueue(items=1) for _ in range(2)]
    batches = take(calls, 2)
    # It stops between the look at the jobs and their end, at the marks.
    holder = connect(autocommit=False)
    assert holder.execute("select from pyjobs_internal.claim_mark for update").rowcount == 2
    call = a.start(record_many, a, batches)
    a.waits_for(holder)
    with pytest.raises(psycopg.Error) as refused:
        b.cancel(jobs[1])
    assert refused.value.sqlstate == "PJ006"
    holder.rollback()
    assert call.result(SOON) == ["recorded"] * 2
    assert [calls.ends_of(job) for job in jobs] == [["SUCCESS"]] * 2


@pytest.mark.parametrize("kind", ["more batches", "younger batch"])
def test_batches_are_locked_job_by_job(calls, a, b, kind):
    """Whoever records the same ones in the order of their jobs, one by one, is no deadlock."""
    first = calls.enqueue(items=1 if kind == "younger batch" else 2)
    others = [calls.enqueue(items=1) for _ in range(2)]
    if kind == "younger batch":
        # That of the second run has a higher number than those of the others.
        calls.finish(first)
        calls.retry(first)
    batches = [batch for job in (first, *others) for batch in calls.claim(job)]
    b.begin().record(batches[0])
    call = a.start(record_many, a, batches[::-1])
    a.waits_for(b)
    second = b.start(b.record, batches[1])
    assert not b.waits_or_ends(second)
    b.commit()
    assert call.result(SOON) == ["recorded", "already", "already"]


# The same for one job: it ends with the record of its last open batch, in a few statements.


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("cancel", ["committed", "open"])
def test_a_job_that_was_cancelled_before_its_last_batch_ends_it(
    calls, a, b, stops, cancel, batches
):
    job = calls.enqueue(items=batches)
    *others, batch = calls.claim(job, batches)
    for other in others:
        calls.record(other)
    stops.before("end_simple", a)
    record = a.start(a.record, batch)
    a.waits_for(stops.holder)
    if cancel == "open":
        b.begin()
    assert b.cancel(job) == "CANCELING"
    stops.go("end_simple", a)
    if cancel == "open":
        a.waits_for(b)
        b.commit()
    assert record.result(SOON)["job_status"] == "REVOKED"
    assert calls.ends_of(job) == ["REVOKED"]


def test_a_job_of_one_batch_keeps_its_sums_and_no_mark(calls):
    calls.mark_every_claim()
    job = calls.enqueue(items=3, batch_size=3)
    (batch,) = calls.claim(job)
    assert calls.value("select count(*) from pyjobs_internal.claim_mark") == 1
    calls.do(
        """select pyjobs.record_batch(%s, %s, counters => '{"n": 2.0, "m": 0}')""",
        batch["batch_id"],
        batch["lease_epoch"],
    )
    assert calls.value("select count(*) from pyjobs_internal.claim_mark") == 0
    kept = "select concat_ws(' ', total, succeeded, failed, counters) from pyjobs_internal.stage"
    assert calls.value(kept) == '3 3 0 {"m": 0, "n": 2}'
    assert calls.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("failed", [[], [1]], ids=["all succeeded", "one failed"])
def test_the_last_of_several_batches_ends_the_job_with_what_all_of_them_say(calls, failed):
    calls.mark_every_claim()
    job = calls.enqueue(items=6, batch_size=2, failure_threshold=0)
    for batch, lost in zip(calls.claim(job, 3), (failed, [], []), strict=True):
        calls.record(batch, failed=lost, counters={"n": 2})
    assert calls.ends_of(job) == ["FAILURE" if failed else "SUCCESS"]
    kept = "select concat_ws(' ', total, succeeded, failed, counters) from pyjobs_internal.stage"
    assert calls.value(kept) == f'6 {6 - len(failed)} {len(failed)} {{"n": 6}}'
    assert calls.value("select count(*) from pyjobs_internal.claim_mark") == 0
    assert_rules(calls.conn)
