"""What other job queues were found to get wrong, each as a scene that must come out right here.

One test a hole; its docstring says which kind of design has it. Each of those with a mutant named
was seen to fail on that mutant (tests/mutants/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def a(new_session) -> Session:
    return new_session()


@pytest.fixture
def b(new_session) -> Session:
    return new_session()


@pytest.fixture
def calls(db, background, admin) -> Iterator[Session]:
    """The session that sets the scene and looks at the end. Afterwards the rules must hold."""
    session = Session(db, background, admin)
    yield session
    if db.info.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
        db.rollback()
        assert_rules(db)


def refused(sqlstate: str) -> Any:
    """As pytest.raises, for an error with this SQLSTATE."""
    return pytest.raises(psycopg.Error, check=lambda error: error.sqlstate == sqlstate)


def leased_again(calls: Session, **options: Any) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """A job whose one batch a worker lost, and another has now: the job, both leases."""
    calls.settable_clock()
    job = calls.enqueue(items=1, **options)
    (old,) = calls.claim(job, worker="old")
    calls.pass_time("2 minutes")
    calls.reap()
    (new,) = calls.claim(job, worker="new")
    return job, old, new


def batch_of(calls: Session, batch: dict[str, Any]) -> dict[str, Any]:
    return calls.row(
        "select state::text, worker, lease_epoch, attempt from pyjobs.batch where id = %s",
        batch["batch_id"],
    )


# Who may say what became of a batch.


def test_a_late_result_does_not_land_on_the_next_lease(calls):
    """Completion that asks for the state (running) and not for the holder.

    Mutants: fence-by-status, epoch-at-least.
    """
    job, old, new = leased_again(calls)
    with refused("PJ001"):
        calls.record(old)
    assert batch_of(calls, new)["state"] == "leased"
    assert calls.record(new)["job_done"]
    assert calls.status(job) == "SUCCESS"


def test_a_late_result_of_the_same_worker_does_not_land_on_its_next_attempt(calls):
    """Completion that asks for the worker's name and not for the attempt.

    Mutants: fence-by-status, epoch-at-least.
    """
    job = calls.enqueue(items=1)
    (first,) = calls.claim(job, worker="w")
    calls.release(first, "it broke")
    (second,) = calls.claim(job, worker="w")
    with refused("PJ001"):
        calls.record(first, failed=[0])
    assert batch_of(calls, second)["state"] == "leased"
    calls.record(second)
    assert calls.status(job) == "SUCCESS"


def test_who_never_had_a_lease_records_nothing(calls):
    """Completion by id alone, which deletes or closes what another has claimed, or nobody.

    Mutant: epoch-at-least.
    """
    job = calls.enqueue(items=2)
    (leased,) = calls.claim(job)
    (waiting,) = calls.rows(
        "select id as batch_id, lease_epoch from pyjobs.batch where state = 'pending'"
    )
    for batch, epoch in ((leased, 0), (leased, 2), (waiting, 0), (waiting, 1)):
        with refused("PJ001"):
            calls.record({**batch, "lease_epoch": epoch})
    assert calls.progress(job)["stages"][0]["processed"] == 0


def test_a_late_failure_does_not_put_anothers_running_batch_back(calls):
    """A failure report that finds the task by its state: it goes back to the queue under its
    worker, whose completion then silently does nothing.

    Mutant: give-back-by-status.
    """
    _, old, new = leased_again(calls)
    with refused("PJ001"):
        calls.release(old, "too late")
    assert batch_of(calls, new) == {
        "state": "leased", "worker": "new", "lease_epoch": new["lease_epoch"], "attempt": 2,
    }  # fmt: skip
    assert calls.record(new)["job_done"]


def test_a_late_failure_does_not_use_up_anothers_last_attempt(calls):
    """A reader whose time ran out archives or dead-letters what is leased to somebody else.

    Mutant: give-back-by-status.
    """
    job, old, new = leased_again(calls, max_attempts=2)
    with refused("PJ001"):
        calls.release(old, "give it up")
    assert calls.record(new)["job_status"] == "SUCCESS"
    assert calls.progress(job)["stages"][0]["failed"] == 0


def test_what_a_lost_attempt_found_and_emitted_is_not_kept(calls):
    """Checkpoints written by name: a stale attempt overwrites those of the next one.

    Mutants: fence-by-status, epoch-at-least.
    """
    job, old, new = leased_again(calls, stages=["one", "two"])
    with refused("PJ001"):
        calls.record(old, counters={"found": 7}, next_items=["old"])
    calls.record(new, counters={"found": 1}, next_items=["new"])
    one, two = calls.progress(job)["stages"]
    assert one["counters"] == {"found": 1}
    assert two["total"] == 1
    assert calls.claim(job)[0]["items"] == ["new"]
    calls.finish(job)


def test_a_lease_that_was_given_back_is_gone_though_it_cost_no_attempt(calls):
    """Fencing by the number of the attempt, which is the same when none was spent.

    Mutant: fence-by-attempt.
    """
    job = calls.enqueue(items=1)
    (old,) = calls.claim(job)
    calls.release(old)
    (new,) = calls.claim(job)
    assert (old["attempt"], new["attempt"]) == (1, 1)
    with refused("PJ001"):
        calls.record(old)
    assert calls.record(new)["job_done"]


def test_a_refusal_is_an_error_that_takes_the_callers_rows_along(calls, a, admin):
    """Completion that answers false, or nothing: the caller commits its own rows anyway.

    Mutant: stale-is-told-not-raised.
    """
    admin.execute("create table public.result (n int); grant all on public.result to public")
    _, old, new = leased_again(calls)
    with refused("PJ001"), a.conn.transaction():
        a.do("insert into public.result values (1)")
        a.record(old)
    with a.conn.transaction():
        a.do("insert into public.result values (2)")
        a.record(new)
    assert calls.rows("select n from public.result") == [{"n": 2}]


# What is final.


@pytest.mark.parametrize("end", ["FAILURE", "REVOKED"])
def test_nothing_completes_on_a_job_that_has_ended(calls, end):
    """Tasks of a run that failed are still completed, and counted.

    Mutant: no-fence.
    """
    job = calls.enqueue(items=2)
    one, two = calls.claim(job, 2)
    calls.record(one)
    calls.finalize(job, end)
    with refused("PJ001"):
        calls.record(two)
    assert calls.status(job) == end
    assert calls.progress(job)["stages"][0]["processed"] == 1


def test_a_late_result_does_not_overwrite_a_cancel(calls):
    """Results kept in memory and written some time later, by id alone.

    Mutant: cancel-that-does-not-fence.
    """
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    assert calls.cancel(job, "0") == "REVOKED"
    with refused("PJ001"):
        calls.record(batch)
    assert calls.status(job) == "REVOKED"


def test_a_result_within_the_grace_of_a_cancel_does_not_resurrect_the_job(calls):
    """Completion that does not look at the status: the cancelled job flips to succeeded.

    Mutant: cancelling-is-finalizable.
    """
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    assert calls.cancel(job) == "CANCELING"
    assert calls.record(batch)["job_status"] == "REVOKED"


def test_a_cancel_does_not_overwrite_a_failure(calls):
    """Cancel as a plain update of the status: a dead-lettered job becomes a cancelled one.

    Mutant: cancel-overwrites.
    """
    job = calls.enqueue(items=1)
    calls.finish(job, failed=[0])
    before = calls.row("select * from pyjobs.job where id = %s", job)
    assert before["status"] == "FAILURE"
    assert calls.cancel(job, "0") == "FAILURE"
    assert calls.row("select * from pyjobs.job where id = %s", job) == before


def test_a_cancelled_job_is_not_revived_by_what_makes_others_go_on(calls):
    """Resume as a plain update of the status: it revives what was cancelled."""
    job = calls.enqueue(items=1)
    calls.cancel(job, "0")
    with refused("PJ006"):
        calls.do("select pyjobs.resume_job(%s)", job)
    with refused("PJ003"):
        calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'go on')", job)
    calls.do("select pyjobs.resume_queue('default')")
    assert calls.value("select pyjobs.release_job(%s)", job) == "REVOKED"
    assert calls.ask("w", "default") == []
    assert calls.status(job) == "REVOKED"


# Who notices the end.


def test_of_the_last_two_one_ends_the_job_in_his_own_commit(calls, a, b):
    """The end by "update .. where not exists (an open one)": the last two each see the other's.

    A check after the commit, or a sweep, then has to make up for it. Mutants:
    update-and-look-in-one-statement, any-open-batch-counts-as-quiet, tokenised-counters.
    """
    job = calls.enqueue(items=2)
    one, two = calls.claim(job, 2)
    assert not a.begin().record(one)["job_done"]
    last = b.start(b.record, two)
    b.waits_for(a)
    a.commit()
    assert last.result(SOON)["job_done"]
    assert calls.status(job) == "SUCCESS"


def test_one_who_recorded_early_and_commits_late_is_not_forgotten(calls, new_session):
    """A counter of the last few, read before it was there by one who is still open.

    Mutant: tail-counter.
    """
    job = calls.enqueue(items=4)
    early, *others = calls.claim(job, 4)
    slow = new_session().begin()
    slow.record(early)
    for batch in others[:2]:
        calls.record(batch)
    last = new_session()
    done = last.start(last.record, others[2])
    last.waits_or_ends(done)
    slow.commit()
    assert done.result(SOON)["job_done"]
    assert calls.status(job) == "SUCCESS"


def test_claims_that_overlap_leave_nobody_who_looks(calls, a, b):
    """A flag "nearly done", set by the claim that sees nothing pending any more.

    Mutant: near-the-end-flag.
    """
    job = calls.enqueue(items=2)
    (one,) = a.begin().claim(job)
    (two,) = b.begin().claim(job)
    a.commit()
    b.commit()
    calls.record(one)
    assert calls.record(two)["job_done"]
    assert calls.status(job) == "SUCCESS"


def test_the_end_commits_with_the_last_result_and_not_after_it(calls, a):
    """The end as a callback behind the commit of the last job: a crash between strands the batch.

    Mutant: any-open-batch-counts-as-quiet, for two.
    """
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    a.begin().record(batch)
    assert a.status(job) == "SUCCESS"
    assert calls.status(job) == "STARTED"
    a.commit()
    a.conn.close()  # nobody comes again
    assert calls.status(job) == "SUCCESS"


def test_what_a_dead_worker_held_comes_back_by_itself(calls):
    """Work that is marked as being done, by nobody: it must be found and put back by hand.

    Mutant: expired-without-an-offer.
    """
    calls.settable_clock()
    job = calls.enqueue(items=1)
    assert len(calls.ask("dead", "default")) == 1
    assert calls.ask("alive", "default") == []  # withdraws the offer
    calls.pass_time("2 minutes")
    calls.do("select pyjobs.reap_leases()")
    (again,) = calls.ask("alive", "default")
    assert calls.record(again)["job_id"] == job
    assert calls.status(job) == "SUCCESS"


# Cleaning up.


def test_a_cancel_is_cleaned_up_by_its_rows_whatever_counts_say(calls, db):
    """Cleaning up while a derived counter is above 0: the counter drifts, and cancels stall.

    Here nothing derived is kept of a stage that is not done, and the reaper asks the leases.
    Mutant: overdue-cancels-are-not-fenced.
    """
    calls.settable_clock()
    job = calls.enqueue(items=3)
    calls.claim(job, 2, lease="1 hour")
    calls.cancel(job, "1 minute")
    kept = calls.row("select total, succeeded, failed, counters from pyjobs_internal.stage")
    assert set(kept.values()) == {None}
    calls.pass_time("50 seconds")
    calls.reap()
    assert calls.status(job) == "CANCELING"
    calls.pass_time("20 seconds")
    calls.reap()
    assert calls.status(job) == "REVOKED"
    assert calls.value("select count(*) from pyjobs.batch where state = 'leased'") == 0


def test_a_finished_job_leaves_its_ledger_and_nothing_else(calls):
    """Rows that spread a counter, one set for each group: those of finished ones stay for ever."""
    for _ in range(5):
        calls.finish(calls.enqueue(items=20))
    assert calls.ask("w", "default") == []
    counts = calls.row(
        "select (select count(*) from pyjobs_internal.offer) as offers,"
        " (select count(*) from pyjobs_internal.stage) as stages,"
        " (select count(*) from pyjobs_internal.job_start) as starts,"
        " (select count(*) from pyjobs_internal.batch) as batches"
    )
    assert counts == {"offers": 0, "stages": 5, "starts": 5, "batches": 100}


# Who waits for whom.


def test_results_of_one_job_do_not_wait_for_each_other(calls, a, b):
    """Completion that locks the job's row, or adds to one counter: all of a job queue for it.

    Mutants: hot-counter, status-written-with-the-progress.
    """
    job = calls.enqueue(items=3)
    one, two, _ = calls.claim(job, 3)
    a.begin().record(one, counters={"n": 1})
    second = b.start(b.begin().record, two, counters={"n": 1})
    assert not b.waits_or_ends(second)
    assert not second.result(SOON)["job_done"]
    b.commit()
    a.commit()
    assert calls.progress(job)["stages"][0]["counters"] == {"n": 2}


def test_a_claim_reads_next_to_nothing_of_what_is_done(calls):
    """A claim that walks the finished rows: it gets slower with all that is kept.

    Mutant: claim-walks-the-ledger.
    """
    job = calls.enqueue(items=600)
    for batch in calls.claim(job, 590):
        calls.record(batch)
    calls.do("vacuum analyze pyjobs_internal.batch")

    def read() -> int:
        return calls.value(
            "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables"
            " where relname = 'batch' and schemaname = 'pyjobs_internal'"
        )

    calls.begin()
    before = read()
    assert len(calls.claim(job)) == 1
    assert read() - before < 50
    calls.commit()


# Time.


def test_a_lease_counts_from_the_claim_and_not_from_the_start_of_its_transaction(calls, a):
    """now(), which stands at the transaction's start: a lease may have run out when it is given.

    Mutant: clock-of-the-transaction.
    """
    job = calls.enqueue(items=1)
    a.begin()
    # Another session's statement is over when ours goes on.
    start = a.value("select now()")
    calls.value("select clock_timestamp()")
    (batch,) = a.claim(job, lease="1 minute")
    left = a.value("select %s - %s - interval '1 minute'", batch["lease_expires_at"], start)
    assert left.total_seconds() > 0
    a.commit()
