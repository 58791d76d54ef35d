"""The low-water marks of offers: claims begin at them, and no offer comes to lie below.

Each guard was taken out once, and a test seen to fail for it:

move_offer_mark: waits for nobody         an_offer_on_its_way_when_the_mark_is_moved_has_its_turn
move_offer_mark: does not look            what_a_claim_in_flight_is_serving_is_not_passed
move_offer_mark: no marks of other servers  a_mark_from_another_server_is_moved_on
enqueue_job, enqueue_jobs: the time of    an_offer_whose_transaction_has_no_id_yet_[..]
  the call's start
offer_time: no id                         the_time_of_an_offer_is_drawn_after_the_transactions_id
set_priority: keeps the time              a_job_that_comes_to_another_level_is_found_there
claim_from_offers: no mark, in the        a_claim_does_not_walk_over_offers_that_were_served[..]
  level, the first few, the walk, the sets
claim_from_offers: moves no mark          a_claim_makes_a_mark
claim_from_offers: only levels with marks  levels_with_and_without_a_mark_are_served_in_order
tidy_offer_marks: any of its three        a_reap_..
audit_job: no look at them                a_reap_finds_what_a_clock_that_was_set_back_has_hidden
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.support.sessions import Session

NEWEST = "select (due_at, after_id) >= (%s::timestamptz, %s) from pyjobs_internal.offer_mark"
NEWEST += " where queue = 'q' and priority = %s order by id desc limit 1"

# The offer that is served next. One call gives all its offers the same time.
NEXT = "select due_at::text, id - 1 as id from pyjobs_internal.offer order by due_at, id limit 1"


@pytest.fixture
def a(new_session) -> Session:
    session = new_session()
    session.mark_every_claim()
    return session


@pytest.fixture
def b(new_session) -> Session:
    return new_session()


def move(
    session: Session, beyond: str = "select clock_timestamp()::text, 0", priority: int = 0
) -> None:
    """Move the level's mark until it stands at a place or later; `beyond` is asked for it now.

    It waits for whatever transactions are open on the server, those of other tests too.
    """
    place = session.row(beyond).values()

    def stands() -> bool:
        session.do("select pyjobs_internal.move_offer_mark('q', %s)", priority)
        return bool(session.value(NEWEST, *place, priority))

    wait_until(stands, f"the mark stands at {list(place)}")


def jobs(session: Session, many: int) -> list[int]:
    """Which jobs the next claims get."""
    return [row["job_id"] for _ in range(many) for row in session.ask("w", "q")]


def serve_one(session: Session, priority: int = 0) -> None:
    """Make a job of one batch, and claim it."""
    job = session.enqueue("q", priority=priority)
    assert jobs(session, 1) == [job]


@pytest.mark.parametrize("how", ["one by one", "in sets", "in turn"])
def test_a_claim_does_not_walk_over_offers_that_were_served(a, b, how):
    """Though a transaction that is older keeps their entries in the index."""

    def take() -> None:
        if how == "in sets":
            assert len(a.rows("select * from pyjobs.claim_jobs('w', '{q}', 10)")) == 10
        else:
            assert len(a.ask("w", "q")) == 1

    if how == "in turn":
        for _ in range(3):
            a.enqueue("q", items=400)
    else:
        a.do(
            "select pyjobs.enqueue_jobs('q', (select jsonb_agg(i) from generate_series(1, 700) i))"
        )
    b.do("begin isolation level repeatable read")
    b.do("select from pyjobs.job")
    for _ in range(60 if how == "in sets" else 300):
        take()
    move(a, NEXT)
    entries = "select pg_stat_get_xact_tuples_returned('pyjobs_internal.offer_turn'::regclass)"
    a.begin()
    before = a.value(entries)
    take()
    assert a.value(entries) - before < 40
    a.commit()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_offer_on_its_way_when_the_mark_is_moved_has_its_turn(a, b, end):
    """It has its time already, and is not to be seen yet."""
    first = a.enqueue("q")
    b.begin()
    hidden = b.enqueue("q")
    others = [a.enqueue("q") for _ in range(4)]
    assert jobs(a, 3) == [first, *others[:2]]
    b.do(end)
    assert a.audit() == []
    assert jobs(a, 3) == [*([hidden] if end == "commit" else []), *others[2:]]


def test_a_mark_moves_while_somebody_only_reads(a, b):
    b.do("begin isolation level repeatable read")
    b.do("select from pyjobs.job")
    a.enqueue("q")
    assert len(a.ask("w", "q")) == 1
    move(a)


@pytest.mark.parametrize("many", [1, 2], ids=["alone", "in turn"])
def test_a_claim_makes_a_mark(a, many):
    for _ in range(many):
        a.enqueue("q", items=4)
    assert len(a.ask("w", "q")) == 1
    assert a.value("select count(*) from pyjobs_internal.offer_mark where queue = 'q'") == 1


def test_what_a_claim_in_flight_is_serving_is_not_passed(a, b):
    served, other = a.enqueue("q"), a.enqueue("q")
    a.do("select pyjobs_internal.move_offer_mark('q', 0)")
    b.begin()
    assert jobs(b, 1) == [served]
    # All that had an id before the mark was made has ended: this one moves it, as far as it can.
    move(a, NEXT)
    b.rollback()
    assert a.audit() == []
    assert jobs(a, 2) == [served, other]


@pytest.mark.parametrize("call", ["enqueue_job('q')", "enqueue_jobs('q', '[1]')"])
def test_an_offer_whose_transaction_has_no_id_yet_is_not_put_below_the_mark(
    a, b, new_session, call
):
    """The call has begun, and is held up before it writes anything."""
    a.do(
        "create schema gate;"
        "create function gate.wait() returns trigger language plpgsql as $$ begin"
        " perform pg_advisory_xact_lock_shared(42); return new; end $$;"
        "create trigger wait before insert on pyjobs_internal.job"
        " for each row execute function gate.wait()"
    )
    serve_one(a)
    gate = new_session()
    gate.do("select pg_advisory_lock(42)")
    # To draw a number needs an id where it is logged, for the next 32 or after a checkpoint.
    wait_until(
        lambda: (
            a.value("select nextval('pyjobs_internal.job_id')") > 0
            and a.value("select log_cnt > 1 from pyjobs_internal.job_id")
        ),
        "the next one is logged already",
    )
    late = b.start(b.value, f"select pyjobs.{call}")
    b.waits_for(gate)
    assert gate.value("select backend_xid is null from pg_stat_activity where pid = %s", b.pid)
    move(a)
    gate.do("select pg_advisory_unlock(42)")
    assert late.result(20)
    assert a.audit() == []
    assert len(jobs(a, 1)) == 1


def test_the_time_of_an_offer_is_drawn_after_the_transactions_id(a):
    a.begin()
    assert a.value("select pg_current_xact_id_if_assigned() is null") is True
    assert a.value("select pyjobs_internal.offer_time() >= now()") is True
    assert a.value("select pg_current_xact_id_if_assigned() is null") is False
    a.rollback()


def test_a_job_that_comes_to_another_level_is_found_there(a):
    moved = a.enqueue("q", priority=-1)
    serve_one(a)
    move(a)
    a.do("select pyjobs.set_priority(%s, 0)", moved)
    assert a.audit() == []
    other = a.enqueue("q")
    assert jobs(a, 2) == [moved, other]


def test_the_priority_that_a_job_has_already_leaves_it_its_turn(a):
    first, second = a.enqueue("q"), a.enqueue("q")
    a.do("select pyjobs.set_priority(%s, 0)", first)
    assert jobs(a, 2) == [first, second]


def test_levels_with_and_without_a_mark_are_served_in_order(a):
    for priority in (0, 8):
        serve_one(a, priority)
        move(a, priority=priority)
    levels = [9, 8, 7, 0, -2147483648]
    waiting = {level: a.enqueue("q", priority=level) for level in reversed(levels)}
    assert jobs(a, 9) == [waiting[level] for level in levels]


def test_a_mark_from_another_server_is_moved_on(a):
    """A dump was restored: its ids may be yet to come here."""
    serve_one(a)
    a.do("update pyjobs_internal.offer_mark set xid = '9223372036854775807'")
    move(a)


def test_a_mark_is_of_its_own_queue(a):
    other = a.enqueue("other")
    serve_one(a)
    move(a)
    assert [row["job_id"] for row in a.ask("w", "q", "other")] == [other]


def test_a_reap_removes_marks_that_are_of_no_more_use(a):
    for _ in range(3):
        a.enqueue("q")
    waits = a.enqueue("waits")
    assert len(jobs(a, 3)) == 3
    for _ in range(2):
        a.ask("w", "waits")
        a.enqueue("waits")
    move(a)
    a.do("select from pyjobs.reap()")
    marks = "select queue from pyjobs_internal.offer_mark order by 1"
    assert [row["queue"] for row in a.rows(marks)] == ["q", "waits"]
    a.do("update pyjobs_internal.offer_mark set seen_at = seen_at - interval '61 seconds'")
    a.do("select from pyjobs.reap()")
    # Nothing is offered in the other, and nobody has served it lately.
    assert [row["queue"] for row in a.rows(marks)] == ["waits"]
    assert waits < a.ask("w", "waits")[0]["job_id"]


def test_a_reap_finds_what_a_clock_that_was_set_back_has_hidden(a):
    serve_one(a)
    move(a)
    hidden, other = a.enqueue("q"), a.enqueue("q")
    a.do("update pyjobs_internal.offer set due_at = due_at - interval '1 hour' where job_id = %s",
         hidden)  # fmt: skip
    found: Any = [(row["job_id"], row["what"].partition(" of ")[0]) for row in a.audit()]
    assert found == [(hidden, "time")]
    a.do("select from pyjobs.reap_leases()")
    assert a.audit() == []
    assert jobs(a, 2) == [hidden, other]
