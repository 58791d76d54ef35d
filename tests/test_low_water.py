"""The low-water mark: claims begin at it, and nothing comes to wait below it.

Each guard was taken out once, and a test seen to fail for it:

move_mark: no arrival lock               on_its_way_when_a_mark_is_moved[..]
move_mark: keeps the arrival lock        who_moves_a_mark_keeps_nobody_from_adding
move_mark: reads the sequence            the_mark_of_an_emptied_stage_is_drawn_and_not_foreseen
move_mark: past what a claim holds       a_claim_in_flight_keeps_the_mark_below_it
add_items, close_batch, return_batch:    on_its_way_when_a_mark_is_moved[added], [emitted],
  no arrival lock                          [returned]
return_batch, fence_leases: keep the     a_batch_that_comes_back_is_found
  position
low_water: of any job, of any stage      a_mark_is_of_its_own_job, on_its_way_when_a_mark_is_moved
claim_from_job(s): no mark               a_claim_does_not_walk_over_what_was_claimed
next_dues: no mark                       a_claim_does_not_walk_over_what_was_claimed
claim_from_job, next_dues: one lane      what_waits_for_another_try_is_found
complete_stage: leaves the marks         the_marks_of_a_stage_go_with_its_completion
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.rules import assert_rules

if TYPE_CHECKING:
    from tests.support.sessions import Session


@pytest.fixture
def a(new_session) -> Session:
    session = new_session()
    session.settable_clock()
    session.mark_every_claim()
    return session


@pytest.fixture
def b(new_session) -> Session:
    return new_session()


def marks(session: Session, job: int) -> list[tuple[int, int]]:
    """Stage and position of each mark, in order."""
    return [
        (row["stage"], row["pos"])
        for row in session.rows(
            "select stage, pos from pyjobs_internal.claim_mark where job_id = %s order by 1, 2",
            job,
        )
    ]


def positions(session: Session, job: int) -> list[int]:
    """Of the batches that wait."""
    return [
        row["pos"]
        for row in session.rows(
            "select pos from pyjobs_internal.batch where job_id = %s and state = 'pending'"
            " order by pos",
            job,
        )
    ]


def last_drawn(session: Session) -> int:
    """The id or position that was drawn last, by whomever."""
    drawn: int = session.value(
        "select pg_sequence_last_value('pyjobs_internal.batch_id'::regclass)"
    )
    return drawn


def test_a_mark_moves_up_to_the_first_batch_that_waits(a):
    job = a.enqueue(items=4)
    _, second, _, fourth = positions(a, job)
    a.claim(job)
    assert marks(a, job) == [(1, second)]
    a.claim(job, 2)
    assert marks(a, job) == [(1, second), (1, fourth)]
    a.claim(job)
    assert marks(a, job) == [(1, second), (1, fourth), (1, last_drawn(a))]
    a.claim(job)
    assert len(marks(a, job)) == 3


def test_the_mark_of_an_emptied_stage_is_drawn_and_not_foreseen(a, b):
    """Who reads the sequence may see it up to 32 values ahead, while another session draws."""
    job = a.enqueue(items=1)
    (batch,) = a.claim(job)
    ((_, mark),) = marks(a, job)
    assert mark == last_drawn(b)
    a.release(batch)
    (position,) = positions(a, job)
    assert position > mark


def test_a_mark_is_moved_by_few_claims(db, new_session):
    """One in 512 by a hash of the id; which, does not change from one server to another."""
    session = new_session()
    job = session.enqueue(items=2_000)
    session.finish(job)
    # 20 claims of 100 each.
    assert session.status(job) == "SUCCESS"
    due = session.value(
        "select count(*) from generate_series(1, 51200) i where pyjobs_internal.mark_due(i, 1)"
    )
    assert 70 < due < 130
    assert (
        session.value(
            "select bool_and(pyjobs_internal.mark_due(i, 512)) from generate_series(1, 1000) i"
        )
        is True
    )


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("how", ["added", "emitted", "returned"])
def test_a_batch_that_is_on_its_way_when_a_mark_is_moved_is_found(a, b, new_session, how, end):
    """It has its position already, and is not to be seen yet."""
    job = a.enqueue(items=3, seal=False, stages=["one", "two"])
    a.do("select pyjobs.add_items(%s, '[1, 2]', 'two')", job)
    first_of_two, second_of_two = a.claim(job, 2)
    assert {first_of_two["stage"], second_of_two["stage"]} == {"two"}
    (first,) = a.claim(job)
    a.do("select pyjobs.add_items(%s, '[7]', %s)", job, "one" if how == "returned" else "two")

    b.begin()
    if how == "added":
        b.do("select pyjobs.add_items(%s, '[8]', 'two')", job)
    elif how == "emitted":
        b.record(first, next_items=[8])
    else:
        b.release(first)
    c = new_session()
    # A later position, there to be claimed; and the last of what is to be seen.
    c.do("select pyjobs.add_items(%s, '[9]', %s)", job, "one" if how == "returned" else "two")
    c.claim(job, 9)
    b.do(end)

    assert a.audit() == []
    if end == "commit":
        (found,) = a.claim(job, 9)
        assert found["items"] == ([0] if how == "returned" else [8])
    else:
        assert a.claim(job, 9) == []
    assert a.audit() == []
    assert_rules(a.conn)


def test_a_claim_in_flight_keeps_the_mark_below_it(a, b):
    """It may be rolled back, and then its batch waits again where it did.

    What is in hand, or was lately, comes last.
    """
    job = a.enqueue(items=3)
    first, *_ = positions(a, job)
    b.begin()
    (held,) = b.claim(job)
    (_second,) = a.claim(job)
    assert all(pos <= first for _, pos in marks(a, job))
    b.rollback()
    assert a.audit() == []
    assert held["batch_id"] in [batch["batch_id"] for batch in a.claim(job, 9)]


def test_a_mark_is_rolled_back_with_its_claim(a):
    job = a.enqueue(items=2)
    a.begin()
    assert len(a.claim(job)) == 1
    assert len(marks(a, job)) == 1
    a.rollback()
    assert marks(a, job) == []
    a.begin()
    a.do("savepoint here")
    (first,) = a.claim(job)
    a.do("rollback to here")
    assert first["batch_id"] in [batch["batch_id"] for batch in a.claim(job, 9)]
    a.commit()
    assert a.audit() == []


def test_who_moves_a_mark_keeps_nobody_from_adding(a, b):
    """The lock is given back at once, however long the claim's transaction is."""
    job = a.enqueue(items=2, seal=False)
    a.begin()
    (batch,) = a.claim(job)
    assert len(marks(a, job)) == 1
    call = b.start(b.do, "select pyjobs.add_items(%s, '[7]')", job)
    assert not b.waits_or_ends(call)
    call.result()
    call = b.start(b.claim, job, 9)
    assert not b.waits_or_ends(call)
    assert len(call.result()) == 2
    a.record(batch)
    a.commit()
    assert a.audit() == []


@pytest.mark.parametrize("how", ["released", "expired", "set aside", "cancelled and retried"])
def test_a_batch_that_comes_back_is_found(a, how):
    job = a.enqueue(items=2)
    (batch,) = a.claim(job)
    (_last,) = a.claim(job)
    assert marks(a, job)
    if how == "released":
        a.release(batch)
    elif how == "expired":
        a.pass_time("2 minutes")
        assert len(a.reap()) == 2
    elif how == "set aside":
        a.do("select pyjobs.quarantine_job(%s, 'odd')", job)
        a.do("select pyjobs.resolve_job(%s, 'RETRY', 'fine')", job)
    else:
        a.cancel(job, "0")
        a.retry(job)
    assert a.audit() == []
    back = a.claim(job, 9)
    assert len(back) == (1 if how == "released" else 2)
    assert batch["items"] in [b["items"] for b in back]


def test_a_mark_is_of_its_own_job(a):
    older = a.enqueue(items=2)
    younger = a.enqueue(items=2)
    a.claim(younger)
    (found,) = a.claim(older)
    assert found["items"] == [0]
    assert a.audit() == []


def test_what_waits_for_another_try_is_found(a):
    """Its position is past the mark or below it: its time decides."""
    job = a.enqueue("q", items=2)
    batch, other = a.claim(job, 2)
    a.do("select pyjobs.release_batch(%s, 1, 'busy', '1 hour')", batch["batch_id"])
    assert a.ask("w", "q") == []
    a.do("select pyjobs.release_batch(%s, 1)", other["batch_id"])
    (back,) = a.ask("w", "q")
    assert back["batch_id"] == other["batch_id"]
    assert a.ask("w", "q") == []
    assert min(pos for _, pos in marks(a, job)) > 0
    assert a.audit() == []
    a.pass_time("61 minutes")
    (late,) = a.ask("w", "q")
    assert late["batch_id"] == batch["batch_id"]
    assert a.audit() == []


def test_what_had_to_wait_comes_after_what_did_not(a):
    job = a.enqueue(items=3)
    batch, _ = a.claim(job, 2)
    a.do("select pyjobs.release_batch(%s, 1, 'busy', '1 second')", batch["batch_id"])
    a.pass_time("1 minute")
    assert [b["items"] for b in a.claim(job, 9)] == [[2], [0]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_claim_does_not_walk_over_what_was_claimed(a, b, jobs):
    """Though a transaction that is older keeps the entries in the index."""

    def take() -> None:
        if jobs == 1:
            assert len(a.ask("w", "q")) == 1
        else:
            assert len(a.rows("select * from pyjobs.claim_jobs('w', '{q}', 2)")) == 2

    for _ in range(jobs):
        a.enqueue("q", items=400)
    b.do("begin isolation level repeatable read")
    b.do("select from pyjobs.job")
    for _ in range(300):
        take()
    entries = "select pg_stat_get_xact_tuples_returned('pyjobs_internal.batch_pending'::regclass)"
    a.begin()
    before = a.value(entries)
    take()
    assert a.value(entries) - before < 10 * jobs
    a.commit()


def test_recording_does_not_walk_over_what_is_open_or_was_closed(a, b):
    """Neither by a plan from when the table was small, nor over dead entries."""
    job = a.enqueue("q", items=400)
    leased = a.claim(job, 300)
    b.do("begin isolation level repeatable read")
    b.do("select from pyjobs.job")
    for batch in leased[:200]:
        a.record(batch)
    entries = (
        "select sum(pg_stat_get_xact_tuples_returned(i.indexrelid)) from pg_index i"
        " where i.indrelid = 'pyjobs_internal.batch'::regclass"
    )
    a.begin()
    before = a.value(entries)
    a.record(leased[200])
    assert a.value(entries) - before < 10
    a.commit()


def test_the_marks_of_a_stage_go_with_its_completion(a):
    job = a.enqueue(items=2, stages=["one", "two"], barriers=["two"])
    first, second = a.claim(job, 2)
    a.record(first, next_items=[1, 2])
    # The other one's was left by what came.
    assert [stage for stage, _ in marks(a, job)] == [1, 2]
    a.record(second)
    (batch,) = a.claim(job)
    assert {stage for stage, _ in marks(a, job)} == {2}
    a.record(batch)
    a.finish(job)
    assert marks(a, job) == []
    assert a.status(job) == "SUCCESS"


def test_a_purge_takes_the_marks(a):
    job = a.enqueue(items=2)
    a.claim(job)
    a.cancel(job, "0")
    assert marks(a, job)
    assert a.value("select pyjobs.purge_jobs('0')") == 1
    assert marks(a, job) == []


def test_the_audit_finds_what_no_claim_would(a, admin):
    job = a.enqueue(items=2)
    first, second = positions(a, job)
    a.do(
        "insert into pyjobs_internal.claim_mark (job_id, run, stage, pos) values (%s, 1, 1, %s)",
        job,
        second + 1,
    )
    assert [(row["what"].partition(" of ")[0], row["recorded"]) for row in a.audit(job)] == [
        ("position", str(first)), ("position", str(second)),
    ]  # fmt: skip


def test_positions_are_drawn_in_ascending_order_over_all_sessions(a):
    """With a cache each session would draw from a share of its own, behind the marks of others."""
    cache: Any = a.value(
        "select seqcache from pg_sequence where seqrelid = 'pyjobs_internal.batch_id'::regclass"
    )
    assert cache == 1
