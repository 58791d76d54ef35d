"""No offer of claimable work is lost, and none counts for more than one turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from tests.support import Background

    Connection = psycopg.Connection[Any]


@pytest.mark.parametrize("look", [1, 2])
def test_an_offer_made_while_a_claim_looks_is_not_withdrawn(
    look: int,
    db: Connection,
    connect: Callable[..., Connection],
    background: Background,
    wait_for_lock: Callable[..., None],
) -> None:
    """The withdrawer has seen that nothing is there; then work and its offer commit.

    He looks before he takes the offers' lock, and again with it.
    """
    calls = Calls(db)
    job = calls.enqueue("q")
    (batch,) = calls.claim(job)
    if look == 1:
        # He is the first to ask for the lock's key.
        key = calls.value(
            "select pg_get_functiondef('pyjobs_internal.offer_key(bigint)'::regprocedure)"
        )
        calls.do("create schema gate create sequence asked")
        calls.do(key.replace("FUNCTION pyjobs_internal.", "FUNCTION gate.", 1))
        calls.do(
            "create or replace function pyjobs_internal.offer_key(job_id bigint)"
            " returns bigint language plpgsql as $$ begin"
            " if nextval('gate.asked') = 1 then perform pg_advisory_xact_lock(42); end if;"
            " return gate.offer_key(job_id); end $$"
        )
    else:
        # The look is a part of the statement that deletes.
        calls.do(
            "create schema gate;"
            "create function gate.wait() returns trigger language plpgsql as $$ begin"
            " perform pg_advisory_xact_lock(42); return null; end $$;"
            "create trigger wait before delete on pyjobs_internal.offer"
            " for each statement execute function gate.wait()"
        )
    gate = Calls(connect(direct=True))
    gate.do("select pg_advisory_lock(42)")
    asker = connect()
    call = background(Calls(asker).ask, "late", "q")
    wait_for_lock(asker)
    calls.do("select pyjobs.release_batch(%s, %s)", batch["batch_id"], batch["lease_epoch"])
    gate.do("select pg_advisory_unlock(42)")
    assert call.result(20) == []
    assert calls.audit(job) == []
    assert [row["batch_id"] for row in calls.ask("next", "q")] == [batch["batch_id"]]


def test_an_offer_that_is_due_now_is_not_given_up_for_a_later_one(
    db: Connection, connect: Callable[..., Connection]
) -> None:
    """Of two offers the earlier one is kept."""
    calls = Calls(db)
    job = calls.enqueue("q", items=2)
    first, second = calls.claim(job, 2)
    for batch, wait in ((first, "1 hour"), (second, "0")):
        calls.do(
            "select pyjobs.release_batch(%s, %s, 'why', %s)",
            batch["batch_id"],
            batch["lease_epoch"],
            wait,
        )
    calls.do(
        "delete from pyjobs_internal.offer;"
        "select pyjobs_internal.offer_job(1, now() + '1 hour'), pyjobs_internal.offer_job(1)"
    )
    # A claim that gets nothing, since another one is just taking the batch.
    other = connect(autocommit=False)
    other.execute("select from pyjobs_internal.batch for update")
    assert calls.ask("w", "q") == []
    other.rollback()
    assert calls.audit(job) == []
    assert len(calls.ask("w", "q")) == 1


def test_adding_items_to_a_job_for_later_makes_one_offer(db: Connection) -> None:
    """Offers that cannot be due before the job is are not made again and again."""
    calls = Calls(db)
    job = calls.value(
        "select pyjobs.enqueue_job('q', '[1]', run_at => now() + interval '1 hour', seal => false)"
    )
    for _ in range(5):
        calls.do("select pyjobs.add_items(%s, '[2]')", job)
    assert calls.value("select count(*) from pyjobs_internal.offer") == 1


def test_a_job_with_many_offers_gives_one_batch_and_has_one_turn(db: Connection) -> None:
    """Offers that were made at the same time are one turn, and more than a few become one."""
    calls = Calls(db)
    many = calls.value("select pyjobs.enqueue_job('q', '[1, 2, 3, 4, 5, 6]')")
    other = calls.value("select pyjobs.enqueue_job('q', '[1, 2, 3]')")
    calls.do(
        "insert into pyjobs_internal.offer (job_id, due_at, priority, queue)"
        " select job_id, due_at, priority, queue from pyjobs_internal.offer"
        " cross join generate_series(1, 5) where job_id = %s",
        many,
    )
    rows = db.execute("select job_id from pyjobs.claim_jobs('w', '{q}', 10)").fetchall()
    assert sorted(rows) == [(many,), (other,)]
    turns = [calls.ask("w", "q")[0]["job_id"] for _ in range(4)]
    assert turns in ([many, other] * 2, [other, many] * 2)
    assert calls.value("select count(*) from pyjobs_internal.offer where job_id = %s", many) == 1


@pytest.mark.parametrize("offers", [3, 4])
def test_a_job_with_a_few_offers_has_one_turn(db: Connection, offers: int) -> None:
    """Who serves it holds one of them, and puts them all to the end.

    Four: a claim sees no other job among the first few.
    """
    calls = Calls(db)
    many = calls.value("select pyjobs.enqueue_job('q', '[1, 2, 3, 4, 5, 6]')")
    other = calls.value("select pyjobs.enqueue_job('q', '[1, 2, 3]')")
    calls.do(
        "insert into pyjobs_internal.offer (job_id, due_at, priority, queue)"
        " select job_id, due_at, priority, queue from pyjobs_internal.offer"
        " cross join generate_series(2, %s) where job_id = %s",
        offers,
        many,
    )
    assert [calls.ask("w", "q")[0]["job_id"] for _ in range(6)] == [many, other] * 3
    left = calls.value("select count(*) from pyjobs_internal.offer where job_id = %s", many)
    assert left == offers


def test_who_withdraws_the_offers_of_a_job_waits_for_none(
    db: Connection, connect: Callable[..., Connection]
) -> None:
    """One that somebody holds stays, and does no harm."""
    calls = Calls(db)
    job = calls.enqueue("q")
    calls.do(
        "insert into pyjobs_internal.offer (job_id, due_at, priority, queue)"
        " select job_id, due_at, priority, queue from pyjobs_internal.offer"
    )
    other = connect(autocommit=False)
    other.execute("select from pyjobs_internal.offer order by id desc limit 1 for update")
    claim = connect(autocommit=False)
    claim.execute("set local lock_timeout = '5s'")
    assert [row["job_id"] for row in Calls(claim).ask("w", "q")] == [job]
    claim.commit()
    other.rollback()
    assert calls.value("select count(*) from pyjobs_internal.offer") == 1
    assert calls.ask("w", "q") == []
    assert calls.value("select count(*) from pyjobs_internal.offer") == 0


def test_an_offer_is_not_put_off_while_work_is_on_its_way(
    db: Connection, connect: Callable[..., Connection]
) -> None:
    """All that can be seen waits for an hour; who adds more relies on the offer that stands."""
    calls = Calls(db)
    job = calls.enqueue("q", items=1, seal=False)
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.release_batch(%s, 1, 'busy', '1 hour')", batch["batch_id"])
    adder = connect(autocommit=False)
    adder.execute("select pyjobs.add_items(%s, '[2]')", [job])
    assert calls.ask("early", "q") == []
    adder.commit()
    assert calls.audit(job) == []
    assert len(calls.ask("late", "q")) == 1
    assert calls.ask("late", "q") == []


def test_who_serves_the_only_job_leaves_its_offer_alone(
    db: Connection, connect: Callable[..., Connection]
) -> None:
    """Nobody else waits: all workers of one big job would write, and queue for, one row."""
    calls = Calls(db)
    job = calls.enqueue("q", items=3)
    claim = Calls(connect(autocommit=False))
    assert len(claim.ask("w", "q")) == 1
    free = "select job_id from pyjobs_internal.offer for update skip locked"
    assert db.execute(free).fetchall() == [(job,)]
    calls.enqueue("q", items=3)
    claim.conn.commit()
    assert len(claim.ask("w", "q")) == 1
    assert len(db.execute(free).fetchall()) == 1


@pytest.mark.parametrize("jobs", [1, 2], ids=["one", "many"])
def test_a_job_that_goes_on_has_few_offers_while_a_claim_stays_open(
    db: Connection, connect: Callable[..., Connection], jobs: int
) -> None:
    """Who adds to it finds the offer that the claim has only put to the end."""
    calls = Calls(db)
    both = [calls.enqueue("q", items=9, seal=False) for _ in range(2)]
    claim = connect(autocommit=False)
    taken = claim.execute("select job_id from pyjobs.claim_jobs('w', '{q}', %s)", [jobs]).fetchall()
    assert [job for (job,) in taken] == both[:jobs]
    for _ in range(20):
        calls.do("select pyjobs.add_items(%s, '[2]')", both[0])
    claim.commit()
    offers = calls.value("select count(*) from pyjobs_internal.offer where job_id = %s", both[0])
    assert offers == 1


def test_a_claim_takes_few_locks_where_many_jobs_of_many_priorities_may_not_be_served(
    db: Connection, connect: Callable[..., Connection]
) -> None:
    """The server's table of locks is everybody's."""
    calls = Calls(db)
    jobs = calls.value(
        "select array_agg(pyjobs.enqueue_job('q', priority => n / 40))"
        " from generate_series(1, 400) n"
    )
    calls.do("select pyjobs.pause_job(job) from unnest(%s) job", jobs)
    free = calls.enqueue("q", items=1, priority=-1)
    claim = connect(autocommit=False)
    taken = claim.execute("select job_id from pyjobs.claim_jobs('w', '{q}', 40)").fetchall()
    assert taken == [(free,)]
    locks = "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"
    (held,) = claim.execute(locks).fetchone() or (0,)
    # Two of each that was tried: a hundred in vain, and those of one level more at most.
    assert held <= 300
