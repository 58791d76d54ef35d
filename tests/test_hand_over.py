"""Who hands over to a batch, and then closes that batch himself in the same transaction.

Its closer was to look after him: nobody else sees yet what he changed. So he hands over once more.

Each guard was taken out once, and a test seen to fail for it:

hand_over: notes nothing                 closes_what_he_kept[..], as_often_as_it_takes, who_seals,
                                           waits_for_the_others[rollback]
close_batch: does not ask                the same, but for [failed] and [expired]
release_batch: does not ask              closes_what_he_kept[failed]
expire_leases: does not ask              closes_what_he_kept[expired]
look_after: no look by a cancel's rule   a_cancel_comes_while_he_hands_over_again
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session


@pytest.fixture
def a(new_session) -> Session:
    session = new_session()
    session.settable_clock()
    return session


@pytest.fixture
def b(new_session) -> Session:
    return new_session()


def leased(session: Session, second_stage: int, **options: Any) -> list[Any]:
    """A job, the batch of its first stage, and those of its second, oldest first."""
    job = session.enqueue(items=1, stages=["one", "two"], seal=False, **options)
    session.add(job, list(range(second_stage)), "two")
    session.seal(job)
    batches = session.claim(job, 1 + second_stage)
    return [job, *sorted(batches, key=lambda batch: (batch["stage"], batch["batch_id"]))]


def assert_ended(session: Session, job: int, status: str = "SUCCESS") -> None:
    assert session.ends_of(job) == [status]
    assert session.status(job) == status
    assert session.audit() == []
    assert_rules(session.conn)


@pytest.mark.parametrize("how", ["one by one", "in one call", "failed", "expired"])
def test_the_job_ends_though_who_completes_a_stage_closes_what_he_kept(a, b, how):
    job, one, low, high = leased(a, 2, max_attempts=1, failure_threshold=1)
    a.begin()
    if how == "in one call":
        assert a.record_many(one, high) == ["recorded", "recorded"]
    else:
        assert not a.record(one)["job_done"]
        if how == "one by one":
            a.record(high)
        elif how == "failed":
            a.release(high, "spoilt")
        else:
            b.extend(low, "1 day")
            a.pass_time("2 minutes")
            assert [row["action"] for row in a.reap()] == ["failed"]
    # It waits for a, now that a has kept this one too.
    call = b.start(b.record, low)
    b.waits_for(a)
    a.commit()
    assert call.result(SOON)["job_done"]
    assert_ended(a, job)


def test_he_hands_over_as_often_as_it_takes(a, b):
    job, one, low, middle, high = leased(a, 3)
    a.begin()
    for batch in (one, high, middle):
        assert not a.record(batch)["job_done"]
    call = b.start(b.record, low)
    b.waits_for(a)
    a.commit()
    assert call.result(SOON)["job_done"]
    assert_ended(a, job)


def test_he_ends_the_job_where_he_closes_all(a):
    job, one, low, high = leased(a, 2)
    a.begin()
    a.record(one)
    a.record(high)
    assert a.record(low)["job_done"]
    a.commit()
    assert_ended(a, job)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_he_waits_for_the_others_where_all_are_in_flight(a, b, end):
    """b looked while the stage before was open, and has gone home."""
    job, one, low, high = leased(a, 2)
    a.begin()
    a.record(one)
    b.begin()
    assert not b.record(low)["job_done"]
    call = a.start(a.record, high)
    a.waits_for(b)
    b.do(end)
    assert call.result(SOON)["job_done"] == (end == "commit")
    if end == "rollback":
        call = b.start(b.record, low)
        b.waits_for(a)
        a.commit()
        assert call.result(SOON)["job_done"]
    else:
        a.commit()
    assert_ended(a, job)


def test_the_job_ends_though_who_seals_closes_what_he_kept(a, b):
    job = a.enqueue(items=2, seal=False)
    low, high = sorted(a.claim(job, 2), key=lambda batch: batch["batch_id"])
    a.begin()
    a.seal(job)
    assert not a.record(high)["job_done"]
    call = b.start(b.record, low)
    b.waits_for(a)
    a.commit()
    assert call.result(SOON)["job_done"]
    assert_ended(a, job)


def test_what_was_kept_is_forgotten_with_a_rollback_to_a_savepoint(a, b):
    """The batch is closed later like any other, and keeps nobody waiting."""
    job, one, low, high = leased(a, 2)
    a.begin()
    a.do("savepoint here")
    a.record(one)
    a.do("rollback to here")
    a.record(high)
    assert not b.record(low)["job_done"]
    a.commit()
    assert a.record(one)["job_done"]
    assert_ended(a, job)


def test_a_cancel_comes_while_he_hands_over_again(a, b, new_session):
    """Then it is the cancel's rule by which he looks."""
    c = new_session()
    job, one, low, high = leased(a, 2)
    a.begin()
    a.record(one)
    b.begin()
    b.record(low)
    call = a.start(a.record, high)
    a.waits_for(b)
    assert c.cancel(job) == "CANCELING"
    b.commit()
    assert call.result(SOON)["job_done"]
    a.commit()
    assert_ended(a, job, "REVOKED")
