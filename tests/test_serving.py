"""Who is served what, and when: claims, leases and results, one call after the other."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.calls import Calls, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    Connection = psycopg.Connection[Any]


@pytest.fixture
def calls(db: Connection) -> Calls:
    return Calls(db)


@pytest.fixture
def timed(calls: Calls) -> Calls:
    """With a clock that can be put ahead."""
    calls.settable_clock()
    return calls


def turns(calls: Calls, count: int, *queues: str, worker: str = "w") -> list[int]:
    """The jobs that a worker is given in so many requests."""
    return [calls.ask(worker, *(queues or ("q",)))[0]["job_id"] for _ in range(count)]


def claim_jobs(calls: Calls, max_jobs: int, *queues: str) -> list[Row]:
    return calls.rows(
        "select * from pyjobs.claim_jobs('w', %s, %s, '60 seconds')",
        list(queues or ("q",)),
        max_jobs,
    )


def release(calls: Calls, batch: Row, error: str | None = None, retry_in: str = "0") -> str:
    status: str = calls.value(
        "select pyjobs.release_batch(%s, %s, %s, %s)",
        batch["batch_id"],
        batch["lease_epoch"],
        error,
        retry_in,
    )
    return status


def extend(calls: Calls, batch: Row, lease: str) -> Row:
    return calls.row(
        "select * from pyjobs.extend_lease(%s, %s, %s)",
        batch["batch_id"],
        batch["lease_epoch"],
        lease,
    )


def reap(calls: Calls) -> list[tuple[str, int]]:
    rows = calls.rows("select * from pyjobs.reap_leases()")
    return [(row["action"], row["batch_id"]) for row in rows]


def record_many(calls: Calls, batches: list[Row], **results: Any) -> list[tuple[int, str]]:
    given = {name: json.dumps(value) for name, value in results.items()}
    rows = calls.rows(
        "select * from pyjobs.record_batches(%s, %s"
        + "".join(f", {name} => %s" for name in given)
        + ")",
        [batch["batch_id"] for batch in batches],
        [batch["lease_epoch"] for batch in batches],
        *given.values(),
    )
    return [(row["batch_id"], row["outcome"]) for row in rows]


def assert_fenced(calls: Calls, batch: Row) -> None:
    """Nothing can be done with a lease any more."""
    for call in (calls.record, lambda b: extend(calls, b, "1 minute"), lambda b: release(calls, b)):
        with pytest.raises(psycopg.Error) as stale:
            call(batch)
        assert stale.value.sqlstate == "PJ001"


def withdraw_offer(calls: Calls, *queues: str) -> None:
    """Ask where there is nothing to do, so that no offer stands any more."""
    assert calls.ask("idle", *(queues or ("q",))) == []
    assert calls.value("select count(*) from pyjobs_internal.offer") == 0


# The order of service


def test_priority_comes_before_age(calls: Calls) -> None:
    old = calls.enqueue("q")
    low = calls.enqueue("q", priority=-1)
    high = calls.enqueue("q", priority=5)
    assert turns(calls, 3) == [high, old, low]
    assert calls.ask("w", "q") == []


def test_among_equals_the_one_that_was_due_first_is_served_first(timed: Calls) -> None:
    query = "select pyjobs.enqueue_job('q', run_at => now() + %s::interval)"
    later = timed.value(query, "2 hours")
    sooner = timed.value(query, "1 hour")
    at_once = timed.enqueue("q")
    timed.pass_time("3 hours")
    assert turns(timed, 3) == [at_once, sooner, later]


def test_a_job_of_a_high_priority_does_not_wait_for_its_turn(calls: Calls) -> None:
    high = calls.enqueue("q", items=3, priority=1)
    low = calls.enqueue("q", items=3)
    assert turns(calls, 4) == [high, high, high, low]


def test_priority_counts_across_queues(calls: Calls) -> None:
    low = calls.enqueue("a")
    high = calls.enqueue("b", priority=1)
    calls.enqueue("c", priority=2)
    assert turns(calls, 2, "a", "b") == [high, low]
    assert calls.ask("w", "a", "b") == []


def test_a_new_priority_takes_effect_at_the_next_claim(calls: Calls) -> None:
    first = calls.enqueue("q", items=9)
    second = calls.enqueue("q", items=9)
    calls.do("select pyjobs.set_priority(%s, 1)", second)
    assert turns(calls, 2) == [second, second]
    calls.do("select pyjobs.set_priority(%s, -1)", second)
    assert turns(calls, 2) == [first, first]


def test_a_new_priority_holds_for_offers_that_are_made_later(calls: Calls) -> None:
    job = calls.enqueue("q")
    (batch,) = calls.claim(job)
    withdraw_offer(calls)
    calls.do("select pyjobs.set_priority(%s, 1)", job)
    other = calls.enqueue("q")
    release(calls, batch)
    assert turns(calls, 2) == [job, other]


def test_who_puts_an_offer_to_the_end_gives_it_the_priority_that_its_job_has(calls: Calls) -> None:
    """Whoever made it may have read an older one."""
    first, second = calls.enqueue("q", items=9), calls.enqueue("q", items=9)
    calls.do("update pyjobs_internal.offer set priority = 5")
    assert turns(calls, 1) == [first]
    offers = "select priority from pyjobs_internal.offer where job_id = %s"
    assert [calls.value(offers, job) for job in (first, second)] == [0, 5]


# Fairness


def test_three_equal_jobs_and_one_worker_alternate(calls: Calls) -> None:
    jobs = [calls.enqueue("q", items=5) for _ in range(3)]
    assert turns(calls, 15) == jobs * 5


def test_a_job_that_waits_is_served_before_another_is_served_twice(calls: Calls) -> None:
    big = calls.enqueue("q", items=20)
    assert turns(calls, 3) == [big] * 3
    small = calls.enqueue("q", items=2)
    served = turns(calls, 4)
    assert sorted(served[:2]) == sorted(served[2:]) == sorted([big, small])


def test_jobs_alternate_while_another_session_leaves_a_claim_open(
    calls: Calls, connect: Callable[..., Connection]
) -> None:
    jobs = [calls.enqueue("q", items=40) for _ in range(3)]
    other = connect(autocommit=False)
    held = Calls(other).ask("open", "q")[0]["job_id"]
    free = [job for job in jobs if job != held]
    served = turns(calls, 16)
    # Every eighth time the one that the open claim holds is served all the same.
    assert 1 <= served.count(held) <= 2
    waiting = [job for job in served if job != held]
    assert waiting == (free * len(served))[: len(waiting)]
    other.rollback()
    assert set(turns(calls, 3)) == set(jobs)


def test_a_free_job_is_served_behind_more_than_a_few_that_are_held(
    calls: Calls, connect: Callable[..., Connection]
) -> None:
    jobs = [calls.enqueue("q", items=2) for _ in range(7)]
    other = connect(autocommit=False)
    assert turns(Calls(other), 6) == jobs[:6]
    assert turns(calls, 1) == [jobs[6]]
    other.rollback()


def test_a_job_that_only_an_open_claim_holds_is_served_too(
    calls: Calls, connect: Callable[..., Connection]
) -> None:
    jobs = {calls.enqueue("q", items=3), calls.enqueue("q", items=1)}
    other = connect(autocommit=False)
    assert {row["job_id"] for row in claim_jobs(Calls(other), 2)} == jobs
    assert len(calls.ask("w", "q")) == 1


# Claims


def test_claim_jobs_takes_one_batch_of_each_of_many(calls: Calls) -> None:
    jobs = [calls.enqueue("q", items=2) for _ in range(5)]
    first = claim_jobs(calls, 3)
    assert [row["job_id"] for row in first] == jobs[:3]
    second = claim_jobs(calls, 10)
    assert sorted(row["job_id"] for row in second) == jobs
    assert [row["job_id"] for row in second][:2] == jobs[3:]
    assert sorted(row["job_id"] for row in claim_jobs(calls, 10)) == jobs[3:]
    assert claim_jobs(calls, 10) == []


def test_claim_jobs_takes_the_higher_priority_first(calls: Calls) -> None:
    low = calls.enqueue("q", items=2)
    high = calls.enqueue("q", items=2, priority=1)
    assert [row["job_id"] for row in claim_jobs(calls, 2)] == [high, low]
    assert [row["job_id"] for row in claim_jobs(calls, 1)] == [high]


def test_claim_jobs_never_takes_more_than_200(calls: Calls) -> None:
    made = calls.value(
        "select pyjobs.enqueue_jobs('q', jsonb_agg(n)) from generate_series(1, 205) n"
    )
    first = claim_jobs(calls, 1000)
    assert len({row["job_id"] for row in first}) == len(first) == 200
    rest = claim_jobs(calls, 1000)
    assert sorted(row["job_id"] for row in first + rest) == sorted(made)


def test_claim_next_job_gives_batches_of_one_job_and_no_more_than_asked(calls: Calls) -> None:
    first = calls.enqueue("q", items=5)
    calls.enqueue("q", items=5)
    query = "select * from pyjobs.claim_next_job('w', '{q}', %s)"
    rows = calls.rows(query, 3)
    assert [row["job_id"] for row in rows] == [first] * 3
    assert [row["items"] for row in rows] == [[0], [1], [2]]
    assert len(calls.rows(query, 100)) == 5
    assert [row["items"] for row in calls.rows(query, 100)] == [[3], [4]]


def test_a_claim_shows_all_of_a_batch(timed: Calls) -> None:
    job = timed.enqueue("q", items=["a", "b", "c"], batch_size=2, params={"band": "r"})
    before = timed.value("select pyjobs_internal.clock()")
    (row,) = timed.claim(job, lease="10 minutes")
    after = timed.value("select pyjobs_internal.clock()")
    ten = dt.timedelta(minutes=10)
    assert before + ten <= row.pop("lease_expires_at") <= after + ten
    batch = timed.row("select id, job_id, stage from pyjobs.batch where state = 'leased'")
    assert row == {
        "job_id": job,
        "run": 1,
        "batch_id": batch["id"],
        "lease_epoch": 1,
        "attempt": 1,
        "queue": "q",
        "stage": "process",
        "params": {"band": "r"},
        "items": ["a", "b"],
    }
    assert [b["items"] for b in timed.claim(job)] == [["c"]]


def test_a_job_without_items_has_its_params_as_the_one_item(calls: Calls) -> None:
    job = calls.enqueue(params={"night": 7})
    (batch,) = calls.claim(job, 10)
    assert batch["items"] == [{"night": 7}]
    assert calls.record(batch)["job_status"] == "SUCCESS"


def test_claim_next_batch_needs_no_earlier_claim_and_starts_the_job(calls: Calls) -> None:
    calls.enqueue("q", items=3)
    job = calls.enqueue("q", items=3)
    assert calls.status(job) == "PENDING"
    assert [batch["items"] for batch in calls.claim(job, 2)] == [[0], [1]]
    assert calls.status(job) == "STARTED"
    assert [batch["items"] for batch in calls.claim(job, 5)] == [[2]]
    assert calls.claim(job, 5) == []


def test_later_stages_come_first(calls: Calls) -> None:
    job = calls.enqueue(items=3, stages=["find", "measure", "fit"])
    find, _ = calls.claim(job, 2)
    calls.record(find, next_items=["m1", "m2"])
    (measure,) = calls.claim(job)
    assert (measure["stage"], measure["items"]) == ("measure", ["m1"])
    calls.record(measure, next_items=["f1"])
    assert [(b["stage"], b["items"]) for b in calls.claim(job, 10)] == [
        ("fit", ["f1"]),
        ("measure", ["m2"]),
        ("find", [2]),
    ]


# What is not served


def claimable(calls: Calls, job: int) -> bool:
    """Whether either claim gives something; both must agree. What was given is given back."""
    found = calls.ask("w", "q")
    for row in found:
        release(calls, row)
    claimed = calls.claim(job)
    for row in claimed:
        release(calls, row)
    assert bool(found) == bool(claimed)
    return bool(found)


@pytest.mark.parametrize(
    ("stop", "go"),
    [("pause_job({job})", "resume_job({job})"), ("pause_queue('q')", "resume_queue('q')")],
)
def test_nothing_is_served_while_the_job_or_its_queue_is_paused(
    calls: Calls, stop: str, go: str
) -> None:
    job = calls.enqueue("q", items=3)
    (leased,) = calls.claim(job)
    calls.do(f"select pyjobs.{stop.format(job=job)}")
    assert not claimable(calls, job)
    assert claim_jobs(calls, 5) == []
    assert calls.record(leased)["job_status"] == "STARTED"
    calls.do(f"select pyjobs.{go.format(job=job)}")
    assert claimable(calls, job)


def test_a_pause_stops_one_job_or_queue_and_no_other(calls: Calls) -> None:
    paused = calls.enqueue("q", items=2)
    other = calls.enqueue("q", items=2)
    calls.do("select pyjobs.pause_job(%s)", paused)
    assert turns(calls, 2) == [other, other]
    calls.do("select pyjobs.pause_queue('q')")
    elsewhere = calls.enqueue("r")
    assert turns(calls, 1, "q", "r") == [elsewhere]


def test_a_job_for_later_is_served_when_it_is_due(timed: Calls) -> None:
    job = timed.value("select pyjobs.enqueue_job('q', run_at => now() + interval '1 hour')")
    assert not claimable(timed, job)
    timed.pass_time("59 minutes")
    assert not claimable(timed, job)
    timed.pass_time("2 minutes")
    assert claimable(timed, job)


def test_a_batch_given_back_for_later_is_served_when_it_is_due(timed: Calls) -> None:
    job = timed.enqueue("q")
    (batch,) = timed.claim(job)
    release(timed, batch, "busy", "10 minutes")
    assert not claimable(timed, job)
    timed.pass_time("9 minutes")
    assert not claimable(timed, job)
    timed.pass_time("2 minutes")
    assert claimable(timed, job)


def test_a_batch_that_waits_or_came_back_does_not_keep_others_of_its_job(timed: Calls) -> None:
    job = timed.enqueue("q", items=3)
    waits, back = timed.claim(job, 2)
    release(timed, waits, "busy", "10 minutes")
    release(timed, back)
    assert [timed.ask("w", "q")[0]["items"] for _ in range(2)] == [[2], [1]]
    assert timed.ask("w", "q") == []
    timed.pass_time("11 minutes")
    assert [row["items"] for row in timed.ask("w", "q")] == [[0]]


def test_a_held_job_is_served_when_it_is_released(calls: Calls) -> None:
    job = calls.enqueue("q", items=2, hold=True)
    assert not claimable(calls, job)
    assert calls.value("select pyjobs.release_job(%s)", job) == "PENDING"
    assert claimable(calls, job)


def test_an_unsealed_job_is_served_and_ends_when_it_is_sealed(calls: Calls) -> None:
    job = calls.enqueue("q", items=1, seal=False)
    assert claimable(calls, job)
    calls.finish(job)
    assert calls.status(job) == "STARTED"
    assert not claimable(calls, job)
    assert calls.value("select pyjobs.seal_job(%s)", job) == "SUCCESS"


def test_a_stage_behind_a_barrier_waits_for_all_before_it(calls: Calls) -> None:
    job = calls.enqueue("q", items=2, stages=["map", "sum"], barriers=["sum"])
    first, second = calls.claim(job, 2)
    calls.record(first, next_items=["x"])
    assert not claimable(calls, job)
    calls.record(second)
    (batch,) = calls.claim(job, 5)
    assert (batch["stage"], batch["items"]) == ("sum", ["x"])


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("cancel_job({job}, grace => '1 hour')", "CANCELING"),
        ("cancel_job({job}, grace => '0')", "REVOKED"),
        ("quarantine_job({job}, 'why')", "UNKNOWN"),
        ("finalize_job({job}, 'FAILURE', 'why')", "FAILURE"),
    ],
)
def test_a_job_in_a_state_that_is_not_claimable_is_not_served(
    calls: Calls, call: str, status: str
) -> None:
    job = calls.enqueue("q", items=3)
    calls.claim(job)
    assert claimable(calls, job)
    calls.do(f"select pyjobs.{call.format(job=job)}")
    assert calls.status(job) == status
    assert not claimable(calls, job)


# Offers: who claimed in vain withdraws them, and whoever makes work claimable makes them again


def test_a_resumed_job_is_found_again(calls: Calls) -> None:
    job = calls.enqueue("q", items=2)
    calls.do("select pyjobs.pause_job(%s)", job)
    withdraw_offer(calls)
    calls.do("select pyjobs.resume_job(%s)", job)
    assert turns(calls, 2) == [job, job]


def test_a_job_that_goes_on_after_a_quarantine_is_found_again(calls: Calls) -> None:
    job = calls.enqueue("q", items=2)
    (fenced,) = calls.claim(job)
    calls.do("select pyjobs.quarantine_job(%s, 'why')", job)
    withdraw_offer(calls)
    assert calls.value("select pyjobs.resolve_job(%s, 'RETRY', 'why')", job) == "RETRY"
    assert turns(calls, 2) == [job, job]
    assert_fenced(calls, fenced)


@pytest.mark.parametrize("error", [None, "out of memory"])
def test_a_batch_that_was_given_back_is_found_again(calls: Calls, error: str | None) -> None:
    job = calls.enqueue("q")
    (batch,) = calls.claim(job)
    withdraw_offer(calls)
    release(calls, batch, error)
    assert [row["batch_id"] for row in calls.ask("w", "q")] == [batch["batch_id"]]


def test_an_expired_batch_is_found_again(timed: Calls) -> None:
    job = timed.enqueue("q")
    (batch,) = timed.claim(job)
    withdraw_offer(timed)
    timed.pass_time("2 minutes")
    assert reap(timed) == [("expired", batch["batch_id"])]
    assert [row["batch_id"] for row in timed.ask("w", "q")] == [batch["batch_id"]]


def test_what_a_batch_emitted_is_found(calls: Calls) -> None:
    job = calls.enqueue("q", items=1, stages=["find", "measure"])
    (batch,) = calls.claim(job)
    withdraw_offer(calls)
    calls.record(batch, next_items=["x"])
    (row,) = calls.ask("w", "q")
    assert (row["stage"], row["items"]) == ("measure", ["x"])


def test_what_an_opened_barrier_lets_through_is_found(calls: Calls) -> None:
    job = calls.enqueue("q", items=2, stages=["map", "sum"], barriers=["sum"])
    first, second = calls.claim(job, 2)
    calls.record(first, next_items=["x"])
    withdraw_offer(calls)
    calls.record(second)
    (row,) = calls.ask("w", "q")
    assert (row["stage"], row["items"]) == ("sum", ["x"])


@pytest.mark.parametrize("stage", [None, "measure"])
def test_added_items_are_found(calls: Calls, stage: str | None) -> None:
    job = calls.enqueue("q", items=1, seal=False, stages=["find", "measure"])
    calls.finish(job)
    withdraw_offer(calls)
    calls.do("select pyjobs.add_items(%s, '[\"x\"]', %s)", job, stage)
    (row,) = calls.ask("w", "q")
    assert (row["stage"], row["items"]) == (stage or "find", ["x"])


@pytest.mark.parametrize("failed_only", [False, True])
def test_a_retried_job_is_found_again(calls: Calls, failed_only: bool) -> None:
    job = calls.enqueue("q", items=2, batch_size=2)
    calls.finish(job, failed=[1])
    withdraw_offer(calls)
    assert calls.value("select pyjobs.retry_job(%s, %s)", job, failed_only) == "RETRY"
    (row,) = calls.ask("w", "q")
    assert (row["run"], row["items"]) == (2, [1] if failed_only else [0, 1])


# Leases


def test_extending_counts_from_now_so_it_prolongs_and_shortens(timed: Calls) -> None:
    job = timed.enqueue("q")
    (batch,) = timed.claim(job, lease="10 minutes")
    longer = extend(timed, batch, "30 minutes")
    assert longer["job_status"] == "STARTED"
    assert longer["lease_expires_at"] > batch["lease_expires_at"] + dt.timedelta(minutes=19)
    timed.pass_time("20 minutes")
    assert reap(timed) == []
    shorter = extend(timed, batch, "1 minute")
    assert shorter["lease_expires_at"] < longer["lease_expires_at"] - dt.timedelta(minutes=8)
    timed.pass_time("2 minutes")
    assert reap(timed) == [("expired", batch["batch_id"])]


def test_extending_tells_of_a_cancel(calls: Calls) -> None:
    job = calls.enqueue("q")
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.cancel_job(%s)", job)
    assert extend(calls, batch, "1 minute")["job_status"] == "CANCELING"


def test_an_expired_lease_that_nobody_took_still_holds(timed: Calls) -> None:
    job = timed.enqueue("q", items=2)
    first, second = timed.claim(job, 2)
    timed.pass_time("1 hour")
    assert timed.claim(job) == []
    timed.record(first)
    extend(timed, second, "1 minute")
    assert reap(timed) == []
    assert timed.record(second)["job_status"] == "SUCCESS"


def test_a_lease_that_was_taken_is_fenced(timed: Calls) -> None:
    job = timed.enqueue("q")
    (batch,) = timed.claim(job, worker="lost")
    timed.pass_time("2 minutes")
    reap(timed)
    state = timed.row("select state, worker from pyjobs.batch where id = %s", batch["batch_id"])
    assert state["state"] == "pending"
    assert_fenced(timed, batch)
    (current,) = timed.claim(job, worker="next")
    assert_fenced(timed, batch)
    assert current["lease_epoch"] > batch["lease_epoch"]
    assert timed.record(current)["job_status"] == "SUCCESS"


def test_the_reaper_takes_what_has_run_out_and_nothing_else(timed: Calls) -> None:
    job = timed.enqueue("q", items=3)
    (short,) = timed.claim(job, lease="1 minute")
    (long,) = timed.claim(job, lease="10 minutes")
    timed.pass_time("2 minutes")
    reaped = timed.rows("select action, batch_id from pyjobs.reap()")
    assert reaped == [{"action": "expired", "batch_id": short["batch_id"]}]
    assert timed.record(long)["job_status"] == "STARTED"


def test_attempt_and_epoch_grow_with_each_claim(calls: Calls) -> None:
    job = calls.enqueue("q", max_attempts=5)
    seen = []
    for _ in range(3):
        (batch,) = calls.claim(job)
        seen.append((batch["attempt"], batch["lease_epoch"]))
        release(calls, batch, "why")
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_giving_back_without_an_error_costs_no_attempt(calls: Calls) -> None:
    job = calls.enqueue("q", max_attempts=1)
    epochs = []
    for _ in range(3):
        (batch,) = calls.claim(job)
        assert batch["attempt"] == 1
        epochs.append(batch["lease_epoch"])
        assert release(calls, batch) == "STARTED"
    assert epochs == sorted(set(epochs))
    (batch,) = calls.claim(job)
    assert release(calls, batch, "why") == "FAILURE"


def test_attempts_used_up_make_all_items_of_the_batch_failed(timed: Calls) -> None:
    job = timed.enqueue("q", items=["a", "b", "c", "d"], batch_size=2, max_attempts=2)
    (good,) = timed.claim(job)
    (bad,) = timed.claim(job, worker="lost")
    timed.record(good, counters={"sources": 4})
    timed.pass_time("2 minutes")
    assert reap(timed) == [("expired", bad["batch_id"])]
    (again,) = timed.claim(job, worker="lost")
    assert (again["batch_id"], again["attempt"]) == (bad["batch_id"], 2)
    timed.pass_time("2 minutes")
    assert reap(timed) == [("failed", bad["batch_id"])]
    assert_fenced(timed, again)
    document = timed.progress(job)
    # Two of four failed, which is not more than half: the good work is kept.
    assert document["summary"]["status"] == "SUCCESS"
    (stage,) = document["stages"]
    assert (stage["processed"], stage["failed"], stage["counters"]) == (4, 2, {"sources": 4})
    assert document["errors"] == [
        {"stage": "process", "item": item, "error": "lease expired on attempt 2 (worker lost)"}
        for item in ("c", "d")
    ]
    assert timed.audit(job) == []


def test_a_job_whose_lost_batches_exceed_its_threshold_is_a_failure(timed: Calls) -> None:
    job = timed.enqueue("q", items=4, max_attempts=1, failure_threshold=0.25)
    batches = timed.claim(job, 4)
    for batch in batches[:2]:
        timed.record(batch)
    timed.pass_time("2 minutes")
    assert sorted(reap(timed)) == [("failed", batch["batch_id"]) for batch in batches[2:]]
    assert timed.status(job) == "FAILURE"
    assert timed.progress(job)["stages"][0]["failed"] == 2


# Results


def record_and_claim(calls: Calls, batch: Row, max_batches: int = 1, **result: Any) -> list[Row]:
    return calls.rows(
        "select * from pyjobs.record_and_claim(%s, %s, 'w', %s, %s, %s, %s)",
        batch["batch_id"],
        batch["lease_epoch"],
        json.dumps(result.get("failed", [])),
        json.dumps(result.get("counters", {})),
        json.dumps(result["next_items"]) if "next_items" in result else None,
        max_batches,
    )


def test_a_batch_counts_once(calls: Calls) -> None:
    job = calls.enqueue("q", items=2)
    first, second = calls.claim(job, 2)
    assert calls.record(first, counters={"n": 1}) == {
        "job_id": job,
        "job_status": "STARTED",
        "stage_done": False,
        "job_done": False,
    }
    with pytest.raises(psycopg.Error) as already:
        calls.record(first, counters={"n": 1})
    assert already.value.sqlstate == "PJ002"
    assert calls.record(second) == {
        "job_id": job,
        "job_status": "SUCCESS",
        "stage_done": True,
        "job_done": True,
    }
    (stage,) = calls.progress(job)["stages"]
    assert (stage["processed"], stage["counters"]) == (2, {"n": 1})


def test_recording_and_claiming_in_one_call(calls: Calls) -> None:
    job = calls.enqueue("q", items=4, params={"k": 1})
    (batch,) = calls.claim(job)
    rows = record_and_claim(calls, batch, 2, failed=[{"index": 0, "error": "dark"}])
    assert [row["items"] for row in rows] == [[1], [2]]
    assert list(rows[0]) == [*batch, "recorded_status"]
    same = ("job_id", "run", "lease_epoch", "attempt", "queue", "stage", "params")
    for row in rows:
        assert [row[name] for name in same] == [batch[name] for name in same]
        assert row["recorded_status"] == "STARTED"
    assert calls.progress(job)["errors"] == [{"stage": "process", "item": 0, "error": "dark"}]
    (last,) = record_and_claim(calls, rows[0], counters={"n": 2})
    assert last["items"] == [3]
    # Nothing is left to claim, but one is still out.
    (none,) = record_and_claim(calls, rows[1])
    assert none == dict.fromkeys(none) | {"job_id": job, "recorded_status": "STARTED"}
    (end,) = record_and_claim(calls, last)
    assert end == dict.fromkeys(end) | {"job_id": job, "recorded_status": "SUCCESS"}
    (stage,) = calls.progress(job)["stages"]
    assert (stage["processed"], stage["failed"], stage["counters"]) == (4, 1, {"n": 2})


def go_on(calls: Calls, batch: Row, *queues: str, worker: str = "w") -> list[Row]:
    return calls.rows(
        "select * from pyjobs.record_and_claim(%s, %s, %s, max_batches => 2, queues => %s)",
        batch["batch_id"],
        batch["lease_epoch"],
        worker,
        list(queues),
    )


def test_recording_and_claiming_goes_on_to_the_next_job_where_its_own_has_no_more(
    calls: Calls,
) -> None:
    first, second = (calls.enqueue("q", items=2, params={"k": n}) for n in (1, 2))
    other = calls.enqueue("other", items=1)
    calls.enqueue("third", items=1)
    (batch,) = calls.claim(first)
    (row,) = go_on(calls, batch, "q", "other")
    assert (row["job_id"], row["items"], row["recorded_status"]) == (first, [1], "STARTED")
    rows = go_on(calls, row, "q", "other")
    assert [(row["job_id"], row["params"], row["items"]) for row in rows] == [
        (second, {"k": 2}, [0]),
        (second, {"k": 2}, [1]),
    ]
    assert {row["recorded_status"] for row in rows} == {"SUCCESS"}
    # One of its own is still out: another's turn.
    (row,) = go_on(calls, rows[0], "q", "other")
    assert (row["job_id"], row["recorded_status"]) == (other, "STARTED")
    (end,) = go_on(calls, rows[1], "q", "other")
    assert end == dict.fromkeys(end) | {"job_id": second, "recorded_status": "SUCCESS"}
    assert calls.status(first) == calls.status(second) == "SUCCESS"


def test_who_goes_on_takes_turns_as_others_do_and_is_known_for_what_he_asked(
    calls: Calls,
) -> None:
    done = calls.enqueue("q", items=1)
    low, high = calls.enqueue("q", items=1), calls.enqueue("q", items=1, priority=5)
    (batch,) = calls.claim(done)
    (row,) = go_on(calls, batch, "q", worker="first")
    assert row["job_id"] == high
    calls.do("select pyjobs.pause_job(%s)", low)
    (none,) = go_on(calls, row, "q", worker="second")
    assert none["batch_id"] is None
    known = calls.rows(
        "select name, queues, last_empty_at is not null as empty from pyjobs_internal.worker"
        " where name in ('first', 'second') order by name"
    )
    assert known == [
        {"name": "first", "queues": ["q"], "empty": False},
        {"name": "second", "queues": ["q"], "empty": True},
    ]


def test_recording_and_claiming_gives_what_was_just_emitted(calls: Calls) -> None:
    job = calls.enqueue("q", items=2, stages=["find", "measure"])
    (batch,) = calls.claim(job)
    (row,) = record_and_claim(calls, batch, next_items=["x"])
    assert (row["stage"], row["items"]) == ("measure", ["x"])


def test_recording_and_claiming_of_a_paused_job_only_records(calls: Calls) -> None:
    job = calls.enqueue("q", items=2)
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.pause_job(%s)", job)
    (row,) = record_and_claim(calls, batch)
    assert (row["batch_id"], row["recorded_status"]) == (None, "STARTED")
    assert calls.progress(job)["stages"][0]["processed"] == 1


def test_recording_and_claiming_with_a_stale_lease_does_neither(timed: Calls) -> None:
    job = timed.enqueue("q", items=2)
    (batch,) = timed.claim(job)
    timed.pass_time("2 minutes")
    reap(timed)
    with pytest.raises(psycopg.Error) as stale:
        record_and_claim(timed, batch)
    assert stale.value.sqlstate == "PJ001"
    states = timed.rows("select state from pyjobs.batch where job_id = %s", job)
    assert [row["state"] for row in states] == ["pending", "pending"]


def test_many_batches_are_recorded_in_one_call_and_their_jobs_end(timed: Calls) -> None:
    jobs = [timed.enqueue("q", items=2, batch_size=2) for _ in range(3)]
    done, lost, good = (timed.claim(job)[0] for job in jobs)
    big = timed.enqueue("q", items=2)
    first, second = timed.claim(big, 2, lease="1 hour")
    extend(timed, done, "1 hour")
    extend(timed, good, "1 hour")
    timed.pass_time("2 minutes")
    assert reap(timed) == [("expired", lost["batch_id"])]
    timed.record(done)
    # In an order that is neither that of the jobs nor of the batches.
    given = [second, lost, good, done, first]
    assert record_many(
        timed,
        given,
        failed=[[], [], [{"index": 1, "error": "dark"}], [], []],
        counters=[{"n": 1}, {"n": 10}, {"n": 100}, {"n": 1000}, {"n": 10000}],
    ) == [
        (second["batch_id"], "recorded"),
        (lost["batch_id"], "stale"),
        (good["batch_id"], "recorded"),
        (done["batch_id"], "already"),
        (first["batch_id"], "recorded"),
    ]
    assert [timed.status(job) for job in (*jobs, big)] == [
        "SUCCESS",
        "STARTED",
        "SUCCESS",
        "SUCCESS",
    ]
    counters = [timed.progress(job)["stages"][0]["counters"] for job in (*jobs, big)]
    assert counters == [{}, {}, {"n": 100}, {"n": 10001}]
    assert timed.progress(jobs[2])["errors"] == [{"stage": "process", "item": 1, "error": "dark"}]
    (refused,) = timed.rows("select * from pyjobs.refused")
    shown = ("job_id", "batch_id", "lease_epoch", "stage", "run", "sqlstate", "class", "job_status")
    assert [refused[name] for name in shown] == [
        jobs[1],
        lost["batch_id"],
        lost["lease_epoch"],
        "process",
        1,
        "PJ001",
        "suspicious",
        "STARTED",
    ]
    assert timed.audit() == []


def test_an_unknown_batch_records_none_of_the_others(calls: Calls) -> None:
    job = calls.enqueue("q")
    (batch,) = calls.claim(job)
    with pytest.raises(psycopg.Error) as unknown:
        record_many(calls, [batch, {"batch_id": 10**9, "lease_epoch": 1}])
    assert unknown.value.sqlstate == "PJ004"
    assert calls.status(job) == "STARTED"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        # Refused although nobody cancelled its job.
        ("quarantine_job({job}, 'why')", ("suspicious", "UNKNOWN")),
        ("finalize_job({job}, 'SUCCESS', 'why')", ("suspicious", "SUCCESS")),
        # What a cancel leaves behind.
        ("cancel_job({job}, grace => '0')", ("normal", "REVOKED")),
    ],
)
def test_a_refused_result_is_normal_after_a_cancel_only(
    calls: Calls, call: str, expected: tuple[str, str]
) -> None:
    job = calls.enqueue("q", items=2)
    (batch,) = calls.claim(job)
    calls.do(f"select pyjobs.{call.format(job=job)}")
    assert_fenced(calls, batch)
    # The refusal itself rolled back.
    assert calls.rows("select * from pyjobs.refused") == []
    calls.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001', 'from a test')",
        batch["batch_id"],
        batch["lease_epoch"],
    )
    row = calls.row("select class, job_status, detail, batch_id from pyjobs.refused")
    assert (row["class"], row["job_status"]) == expected
    assert (row["detail"], row["batch_id"]) == ("from a test", batch["batch_id"])


def test_a_refused_result_of_an_earlier_run_is_normal(calls: Calls) -> None:
    job = calls.enqueue("q", items=2)
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.finalize_job(%s, 'FAILURE', 'why')", job)
    calls.do("select pyjobs.retry_job(%s)", job)
    assert_fenced(calls, batch)
    calls.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001')", batch["batch_id"], batch["lease_epoch"]
    )
    row = calls.row("select class, run, job_status from pyjobs.refused")
    assert row == {"class": "normal", "run": 1, "job_status": "RETRY"}


# Making jobs


def test_a_dedupe_key_gives_the_live_job_and_after_its_end_a_new_one(calls: Calls) -> None:
    job = calls.enqueue("q", items=1, dedupe_key="night 7")
    assert calls.enqueue("q", items=5, dedupe_key="night 7") == job
    assert calls.progress(job)["stages"][0]["total"] == 1
    others = {
        calls.enqueue("q", dedupe_key="night 8"),
        calls.enqueue("r", dedupe_key="night 7"),
        calls.enqueue("q"),
    }
    assert len(others | {job}) == 4
    (batch,) = calls.claim(job)
    assert calls.enqueue("q", dedupe_key="night 7") == job
    calls.do("select pyjobs.cancel_job(%s)", job)
    assert calls.status(job) == "CANCELING"
    assert calls.enqueue("q", dedupe_key="night 7") == job
    calls.record(batch)
    assert calls.status(job) == "REVOKED"
    new = calls.enqueue("q", dedupe_key="night 7")
    assert new not in others | {job}
    assert calls.enqueue("q", dedupe_key="night 7") == new


def test_many_small_jobs_are_made_in_the_order_of_their_params(calls: Calls) -> None:
    params = [{"n": 2}, {"n": 1}, "x", None]
    made = calls.value(
        "select pyjobs.enqueue_jobs('q', %s, priority => 3, name => 'small', max_attempts => 1)",
        json.dumps(params),
    )
    assert len(set(made)) == 4
    calls.enqueue("q", priority=2)
    rows = [calls.ask("w", "q")[0] for _ in range(4)]
    served = {row["job_id"]: row for row in rows}
    for job, given in zip(made, params, strict=True):
        assert (served[job]["params"], served[job]["items"]) == (given, [given])
    assert calls.record(served[made[0]])["job_status"] == "SUCCESS"
    assert release(calls, served[made[1]], "why") == "FAILURE"
    names = calls.rows("select distinct name from pyjobs.job where id = any (%s)", made)
    assert names == [{"name": "small"}]
    assert calls.value("select pyjobs.enqueue_jobs('q', '[]')") == []
    assert calls.audit() == []


# Workers


def test_whoever_asks_is_noted_with_queues_and_leases(timed: Calls) -> None:
    job = timed.enqueue("q", items=5)
    timed.ask("one", "q", "r")
    timed.ask("idle", "r")
    (batch, _) = timed.claim(job, 2, worker="two")
    query = "select worker, queues, leased_batches from pyjobs.active_workers()"
    assert [tuple(row.values()) for row in timed.rows(query)] == [
        ("idle", ["r"], 0),
        ("one", ["q", "r"], 1),
        ("two", [], 2),
    ]
    timed.record(batch)
    timed.pass_time("59 minutes")
    timed.ask("one", "q")
    timed.pass_time("2 minutes")
    assert [tuple(row.values()) for row in timed.rows(query)] == [("one", ["q"], 2)]


def test_a_worker_that_only_extends_its_lease_is_active(timed: Calls) -> None:
    job = timed.enqueue("q")
    (batch,) = timed.claim(job, worker="long", lease="3 hours")
    seen = timed.value("select last_seen from pyjobs.active_workers()")
    timed.pass_time("59 minutes")
    extend(timed, batch, "3 hours")
    assert timed.value("select last_seen from pyjobs.active_workers()") > seen
