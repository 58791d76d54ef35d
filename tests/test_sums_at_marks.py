"""What a stage had come to at its marks: progress adds to that, and is always the whole truth.

Each guard was taken out once, and a test seen to fail for it; see the end of the mutants' table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.rules import assert_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.sessions import Session

NEWEST = """
    select summed_to, cardinality(still_open) as still_open, succeeded, failed, counters, total
    from pyjobs_internal.claim_mark where job_id = %s and stage = %s
    order by pos desc, total_to desc limit 1
"""


@pytest.fixture
def a(new_session) -> Session:
    session = new_session()
    session.settable_clock()
    session.mark_every_claim()
    return session


@pytest.fixture
def b(new_session) -> Session:
    return new_session()


def mark(session: Session, job: int, stage: int = 1) -> dict[str, Any]:
    """The newest mark of a stage."""
    return session.row(NEWEST, job, stage)


def stage(session: Session, job: int, no: int = 1) -> dict[str, Any]:
    """A stage's part of the progress document, once it is seen to be the ledger's."""
    counts = "select * from pyjobs_internal.{}(%s, 1, %s::smallint)"
    assert session.row(counts.format("counts_so_far"), job, no) == session.row(
        counts.format("stage_counts"), job, no
    )
    part: dict[str, Any] = session.progress(job)["stages"][no - 1]
    return part


def test_a_mark_says_what_has_been_closed_and_what_is_still_out(a):
    job = a.enqueue(items=12, batch_size=2)
    first, second, third = a.claim(job, 3)
    assert mark(a, job)["still_open"] == 3
    a.record(first, failed=[1], counters={"stars": 3})
    a.record(third, counters={"stars": 4, "sources": 1})
    (fourth,) = a.claim(job)
    summed = mark(a, job)
    assert summed.pop("summed_to") > third["batch_id"]
    assert summed == {
        "still_open": 2,
        "succeeded": 3,
        "failed": 1,
        "counters": {"stars": 7, "sources": 1},
        "total": 12,
    }
    a.record(second, counters={"stars": 1})
    a.record(fourth)
    assert stage(a, job) == {
        "key": "process",
        "status": "running",
        "progress": 0.6667,
        "total": 12,
        "pending": 4,
        "leased": 0,
        "processed": 8,
        "failed": 1,
        "remaining": 4,
        "counters": {"stars": 8, "sources": 1},
    }
    assert_rules(a.conn)


WAYS = {
    "given back": lambda a, batch: a.release(batch),
    "given back with an error": lambda a, batch: a.release(batch, "no luck"),
    "expired": lambda a, _: (a.pass_time("2 minutes"), a.reap()),
    "failed for good": lambda a, batch: (
        a.do("update pyjobs_internal.job set max_attempts = 1"),
        a.release(batch, "no luck"),
    ),
    "set aside": lambda a, batch: (
        a.do("select pyjobs.quarantine_job(%s, 'why')", batch["job_id"]),
        a.do("select pyjobs.resolve_job(%s, 'RETRY', 'why')", batch["job_id"]),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("marked", ["before", "after", "before and after"])
def test_a_batch_that_comes_back_is_counted_once(a, way, marked):
    """Out when a mark is made; then back, above it; then closed there."""
    job = a.enqueue(items=6)
    first, second = a.claim(job, 2)
    a.record(second)
    if "before" in marked:
        a.record(*a.claim(job))
    assert stage(a, job)["leased"] == 1
    WAYS[way](a, first)
    stage(a, job)
    if "after" in marked:
        a.record(*a.claim(job))
        stage(a, job)
    for batch in a.claim(job, 9):
        assert stage(a, job)["leased"] >= 1
        if batch["items"] != [5]:
            a.record(batch)
        assert a.audit() == []
    found = stage(a, job)
    assert (found["total"], found["processed"], found["leased"]) == (6, 5, 1)
    assert found["failed"] == (way == "failed for good")
    assert_rules(a.conn)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("what", ["claim", "record", "release", "add", "emit"])
def test_what_is_on_its_way_when_a_mark_is_made_is_counted_once(a, b, new_session, what, end):
    job = a.enqueue(items=8, seal=False, stages=["one", "two"])
    a.add(job, list(range(8)), "two")
    twos = a.claim(job, 2)
    a.do("select pyjobs.add_items(%s, '[[]]', 'two')", job)
    ones = b.rows(
        "update pyjobs_internal.batch set state = state where job_id = %s and stage = 1"
        " returning id", job,
    )  # fmt: skip
    assert len(ones) == 8
    emitter = first_of_stage_one(a, job)
    b.begin()
    if what == "claim":
        assert b.claim(job)[0]["stage"] == "two"
    elif what == "record":
        b.record(twos[0], counters={"stars": 2})
    elif what == "release":
        b.release(twos[0])
    elif what == "add":
        b.add(job, list(range(3)), "two")
    else:
        b.record(emitter, next_items=[1, 2])
    c = new_session()
    c.record(c.claim(job)[0], counters={"stars": 5})
    c.add(job, list(range(2)), "two")
    c.record(c.claim(job)[0])
    before = stage(c, job, 2)
    b.do(end)
    assert c.audit() == []
    stage(c, job, 1)
    if end == "rollback":
        assert stage(c, job, 2) == before
    c.claim(job)
    after = stage(c, job, 2)
    came = {"add": 3, "emit": 2}.get(what, 0) if end == "commit" else 0
    assert after["total"] == before["total"] + came == 11 + came
    done = int(what == "record" and end == "commit")
    assert (after["processed"], after["counters"]) == (2 + done, {"stars": 5 + 2 * done})
    assert_rules(c.conn)


def first_of_stage_one(session: Session, job: int) -> dict[str, Any]:
    """A leased batch of the first stage, while the second has batches too."""
    paused = "update pyjobs_internal.stage set open = %s where job_id = %s and no = 2"
    session.do(paused, False, job)
    (batch,) = session.claim(job)
    session.do(paused, True, job)
    assert batch["stage"] == "one"
    return dict(batch)


@pytest.mark.parametrize("what", ["added", "recorded"])
def test_what_comes_while_a_mark_is_made_is_counted_once(a, b, stops, what):
    """After the look under the arrival lock, before all is added up."""
    job = a.enqueue(items=6, seal=False)
    first, _second = a.claim(job, 2)
    stops.before("closed_between", a)
    claim = a.start(a.claim, job)
    a.waits_for(stops.holder)
    if what == "added":
        b.add(job, list(range(3)))
    else:
        b.record(first, counters={"stars": 2})
    stops.go("closed_between", a)
    (third,) = claim.result(20)
    assert b.audit() == []
    before = stage(b, job)
    b.record(third)
    b.claim(job)
    assert b.audit() == []
    after = stage(b, job)
    added, recorded = (3, 0) if what == "added" else (0, 1)
    assert (before["total"], after["total"]) == (6 + added, 6 + added)
    assert (before["processed"], after["processed"]) == (recorded, recorded + 1)
    assert_rules(a.conn)


def test_a_mark_is_rolled_back_with_what_it_has_added_up(a, b):
    job = a.enqueue(items=4)
    first, second = a.claim(job, 2)
    with a.conn.transaction(force_rollback=True):
        a.record(first)
        a.claim(job)
        assert stage(a, job)["processed"] == 1
        assert mark(a, job)["succeeded"] == 1
        assert stage(b, job)["processed"] == 0
    assert mark(a, job)["succeeded"] == 0
    with a.conn.transaction():
        a.do("savepoint before")
        a.record(first)
        a.do("rollback to before")
        a.claim(job)
        assert stage(a, job)["processed"] == 0
    a.record(second)
    assert stage(b, job)["processed"] == 1
    assert_rules(a.conn)


def test_an_older_snapshot_has_its_own_mark_and_ledger(a, b):
    job = a.enqueue(items=6, seal=False)
    a.record(*a.claim(job))
    b.do("begin isolation level repeatable read")
    before = stage(b, job)
    a.add(job, list(range(2)))
    for _ in range(3):
        a.record(*a.claim(job))
    assert stage(b, job) == before
    b.commit()
    assert (before["processed"], before["total"]) == (1, 6)
    assert (stage(b, job)["processed"], stage(b, job)["total"]) == (4, 8)


@pytest.mark.parametrize("how", ["enqueued", "added", "retried"])
def test_progress_reads_few_batches_of_many(a, b, how):
    """When all wait, under way and near the end, though an older transaction sees all as it was."""
    many = 2000
    if how == "added":
        job = a.enqueue(items=0, seal=False)
        for _ in range(20):
            a.add(job, list(range(many // 20)))
    else:
        job = a.enqueue(items=many)
        if how == "retried":
            a.cancel(job, "0")
            assert a.retry(job) == "RETRY"
    b.do("begin isolation level repeatable read")
    b.do("select from pyjobs.job")
    assert reads(a, a.progress, job) < 100
    for _ in range(19):
        leased = a.claim(job, 100)
        assert len(leased) == 100
        a.record_many(*leased)
    (late,) = a.claim(job)
    assert reads(a, a.progress, job) < 250
    assert a.progress(job)["summary"]["progress"] == 0.95
    a.record(late)
    assert_rules(a.conn)


# Reads of the ledger by its indexes, dead entries too, and by none. What is leased has an index of
# its own, which a cancel reads as well.
READS = """
    select sum(pg_stat_get_xact_tuples_returned(indexrelid))::bigint
        + pg_stat_get_xact_tuples_returned('pyjobs_internal.batch'::regclass)
    from pg_index where indrelid = 'pyjobs_internal.batch'::regclass
    and indexrelid <> 'pyjobs_internal.batch_leased'::regclass
"""


def reads(session: Session, call: Callable[..., Any], *arguments: Any) -> int:
    """How much of the ledger a call of this session reads."""
    with session.conn.transaction():
        before = session.value(READS)
        call(*arguments)
        read: int = session.value(READS) - before
    return read


@pytest.mark.parametrize("how", ["released", "lost", "set aside"])
def test_what_has_come_back_is_not_walked_over_for_ever(a, how):
    """All were out once, and came back, above the total of all that ever came."""
    many = 2000
    job = a.enqueue(items=many)
    for _ in range(20):
        leased = a.claim(job, many // 20)
        if how == "released":
            a.do(
                "select count(pyjobs.release_batch(id, lease_epoch, 'no luck'))"
                " from pyjobs_internal.batch where id = any (%s)",
                [batch["batch_id"] for batch in leased],
            )
    if how == "lost":
        a.pass_time("2 minutes")
        a.reap()
    elif how == "set aside":
        a.quarantine(job)
        a.resolve(job)
    a.do("vacuum pyjobs_internal.batch")
    for _ in range(10):
        a.record_many(*a.claim(job, many // 20))
    a.do("vacuum pyjobs_internal.batch")
    a.claim(job)
    assert reads(a, a.progress, job) < 300
    assert reads(a, a.claim, job) < 300
    assert stage(a, job)["processed"] == many // 2
    assert a.audit() == []


def test_what_is_out_is_looked_up_among_what_is_out(a, b):
    """Also where most jobs are small, and the planner takes this one for another of them."""
    many = 8000
    a.do(
        "select pyjobs.enqueue_jobs('small', (select jsonb_agg(i) from generate_series(1, %s) i))",
        many,
    )
    job = a.enqueue(items=many)
    for _ in range(4):
        a.record_many(*a.claim(job, 1000))
    a.claim(job, 3)
    a.do("vacuum analyze pyjobs_internal.batch")
    assert reads(b, b.progress, job) < 1000
    assert reads(b, b.explain, job) < 5000


def test_producers_of_many_batches_are_not_in_each_others_way(a, b):
    """At SERIALIZABLE either would be rolled back if it had read where the other writes."""
    a.do("analyze")
    for producer in (a, b):
        producer.do("begin isolation level serializable")
        producer.do("select from pyjobs_internal.job_state")
    for producer in (a, b, a):
        producer.enqueue(items=600)
    a.commit()
    b.commit()
    assert len(a.rows("select from pyjobs.job")) == 3


def test_a_claim_that_is_under_way_when_the_function_is_replaced_finds_it(a):
    job = a.enqueue(items=3)
    a.claim(job)
    before = mark(a, job)["summed_to"]
    a.do("update pyjobs_internal.claim_mark set pos = 0, summed_to = 0, still_open = '{}'")
    a.do("select pyjobs_internal.move_mark(%s, 1, 1::smallint)", job)
    assert mark(a, job)["summed_to"] == before


def test_with_very_many_out_the_sums_wait(a):
    """Each mark would have the list of all."""
    job = a.enqueue(items=20_200)
    leased = a.claim(job, 20_100)
    assert mark(a, job) == {
        "summed_to": 0,
        "still_open": 0,
        "succeeded": 0,
        "failed": 0,
        "counters": {},
        "total": 20_200,
    }
    assert stage(a, job)["leased"] == 20_100
    for start in range(0, 20_100, 300):
        a.record_many(*leased[start : start + 300])
    # Twenty thousand at a time.
    a.claim(job)
    first = mark(a, job)
    assert first["succeeded"] == 19_999
    assert stage(a, job)["processed"] == 20_100
    a.claim(job)
    assert mark(a, job)["succeeded"] == 20_100
    assert stage(a, job)["processed"] == 20_100
    assert a.audit() == []


def test_counters_of_very_many_names_are_added_up_when_asked_for(a):
    job = a.enqueue(items=6)
    batches = a.claim(job, 3)
    a.record(batches[0], counters={f"counter {i}": i for i in range(1000)})
    a.claim(job)
    assert mark(a, job)["summed_to"] is None
    assert len(stage(a, job)["counters"]) == 1000
    a.record(batches[1], counters={"counter 7": 1})
    a.claim(job)
    assert mark(a, job)["summed_to"] is None
    assert stage(a, job)["counters"]["counter 7"] == 8
    assert_rules(a.conn)


def test_a_stage_that_was_begun_before_there_were_sums_is_counted(a):
    job = a.enqueue(items=6)
    a.record(*a.claim(job))
    a.do(
        "update pyjobs_internal.claim_mark set summed_to = null, still_open = null,"
        " succeeded = null, failed = null, counters = null, total_to = null, total = null"
    )
    a.record(*a.claim(job))
    assert mark(a, job)["total"] is None
    assert stage(a, job)["processed"] == 2
    assert_rules(a.conn)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("total = total + 1", "total"),
        ("succeeded = succeeded - 1", "succeeded"),
        ("failed = failed + 1", "failed"),
        ("counters = '{\"stars\": 1}'", "counters"),
        ("still_open = '{}'", "open batches not listed"),
    ],
)
def test_the_audit_finds_sums_that_are_not_the_ledgers(a, change, what):
    job = a.enqueue(items=6, batch_size=2)
    first, _second = a.claim(job, 2)
    a.record(first, failed=[0], counters={"stars": 2})
    a.claim(job)
    assert a.audit(job) == []
    a.do(f"update pyjobs_internal.claim_mark set {change}")
    assert f"{what} at the mark" in {row["what"] for row in a.audit(job)}
