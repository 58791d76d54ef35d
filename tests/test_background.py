"""The repair that pyjobs starts from, point by point: each has a test named for what it proves.

The tests that take a ``design`` run on pyjobs, where they pass, and on the unrepaired design that
it replaces (tests/unrepaired), where they must fail: there a job's status is saved together with
its progress, from a stale copy.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.rules import ALLOWED, FINAL, FINALIZABLE, assert_rules
from tests.support.sessions import SOON, Session, Stops, make_operators_patient
from tests.unrepaired.designs import Pyjobs, Unrepaired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unrepaired.designs import Design

SQL = Path(__file__).parents[1] / "sql"


@pytest.fixture
def a(new_session) -> Session:
    return new_session()


@pytest.fixture
def calls(db, background, admin) -> Iterator[Session]:
    """The session that does most of it. Afterwards the rules must hold."""
    session = Session(db, background, admin)
    yield session
    if db.info.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:  # it failed, waiting
        db.rollback()
        assert_rules(db)


def refused(sqlstate: str) -> Any:
    """As pytest.raises, for an error with this SQLSTATE."""
    return pytest.raises(psycopg.Error, check=lambda error: error.sqlstate == sqlstate)


def unlike_the_unrepaired_design(caught: str) -> Callable[..., Any]:
    """Run the test on both designs; on the unrepaired one it must fail, saying ``caught``."""

    def decorate(test: Callable[[Design], None]) -> Callable[..., None]:
        @pytest.mark.parametrize("made", [Pyjobs, Unrepaired], ids=["pyjobs", "unrepaired"])
        @functools.wraps(test)
        def both(made, new_session, db) -> None:
            make_operators_patient(db)
            design = made(new_session)
            if made is Unrepaired:
                with pytest.raises(AssertionError, match=caught):
                    test(design)
            else:
                test(design)
                assert_rules(db)

        del both.__wrapped__  # so that pytest sees these arguments
        return both

    return decorate


# "The overall status is no longer written by the save that persists progress."


def test_recording_never_writes_the_status_or_the_finish_time(calls, a):
    """Every batch but the last leaves the job's row as it was, to the byte and the version."""
    job = calls.enqueue(items=4)
    batches = calls.claim(job, 4)
    row = "select xmin, xmax, ctid, j.* from pyjobs_internal.job j"
    before = calls.rows(row)
    for batch in batches[:3]:
        a.record(batch, counters={"found": 1})
        assert calls.rows(row) == before
    a.record(batches[3])
    assert calls.rows(row) != before


@unlike_the_unrepaired_design(caught="the document says")
def test_a_progress_update_never_touches_the_status(design):
    """A slow worker's update of the progress, and a cancel in between."""
    job = design.job(batches=3)
    worker, canceller = design.worker(job), design.canceller(job)
    canceller.read()
    worker.read()
    worker.save()
    worker.commit()
    canceller.save()
    canceller.commit()
    assert design.shown(job) == design.status(job), f"the document says {design.shown(job)}"
    assert design.processed(job) == 1


# "The terminal transition is one guarded statement that fires only from CREATED, PENDING, STARTED,
# RETRY; statement-scope, no lock for the length of a transaction."


def in_state(calls: Session, status: str) -> int:
    """A job in that state, with a batch open where there can be one."""
    job = calls.enqueue(items=2, hold=status == "CREATED")
    if status in ("STARTED", "CANCELING", "UNKNOWN", "RETRY"):
        calls.claim(job)
    if status == "CANCELING":
        calls.cancel(job)
    elif status in ("UNKNOWN", "RETRY"):
        calls.quarantine(job)
        if status == "RETRY":
            calls.resolve(job)
    elif status in FINAL:
        calls.finalize(job, status)
    assert calls.status(job) == status
    return job


STATES = [
    "CREATED", "PENDING", "STARTED", "RETRY", "CANCELING", "UNKNOWN", "SUCCESS", "FAILURE",
    "REVOKED",
]  # fmt: skip


@pytest.mark.parametrize("status", STATES)
def test_the_terminal_transition_fires_only_from_finalizable_states(new_session, status):
    """CANCELING and UNKNOWN end by ways of their own; completion does not end them."""
    calls = new_session()
    for end in ("SUCCESS", "FAILURE", "REVOKED"):
        job = in_state(calls, status)
        fired = calls.value("select pyjobs_internal.transition_job(%s, %s, 'test', null)", job, end)
        assert fired == ((status, end) in ALLOWED)
        assert calls.status(job) == (end if fired else status)
        if end == "SUCCESS":
            assert fired == (status in FINALIZABLE)


def test_no_lock_is_held_for_the_length_of_a_recorders_transaction(calls, a):
    job = calls.enqueue(items=3)
    batch, _ = calls.claim(job, 2)
    a.begin().record(batch)
    calls.do("select from pyjobs_internal.job for update nowait")
    a.commit()


# "That set has one home and a name, with the reason why CANCELING and UNKNOWN are not in it."


def test_the_finalizable_states_have_one_home_with_the_reason(calls):
    named = calls.rows("select status from pyjobs_internal.job_state where finalizable")
    assert {row["status"] for row in named} == FINALIZABLE
    home = SQL / "data" / "job_state.sql"
    assert re.search(r"CANCELING and\s+(-- )?UNKNOWN are not finalizable: ", home.read_text())
    spelled = re.compile(r"'CREATED'\s*,\s*'PENDING'\s*,\s*'STARTED'")
    elsewhere = [
        path.name
        for path in SQL.rglob("*.sql")
        if path != home and spelled.search(path.read_text())
    ]
    assert elsewhere == []


def test_the_guard_derives_from_those_rows(calls):
    """Take a transition out of the data, and it is refused; put it back, and it is made."""
    job = calls.enqueue(items=1)
    gone = "delete from pyjobs_internal.job_transition where to_status = 'UNKNOWN' returning *"
    rows = calls.rows(gone)
    with refused("PJ003"):
        calls.quarantine(job)
    with refused("PJ003"):
        calls.do("update pyjobs_internal.job set status = 'UNKNOWN'")
    for row in rows:
        calls.do("insert into pyjobs_internal.job_transition values (%s, %s, %s)", *row.values())
    assert calls.quarantine(job) == "UNKNOWN"


def test_the_allowed_transitions_are_those_of_the_table_of_states(calls):
    rows = calls.rows("select from_status, to_status from pyjobs_internal.job_transition")
    assert {tuple(row.values()) for row in rows} == {pair for pair in ALLOWED if pair[0]}


# "A completing worker does not resurrect a revoked job; a completion that arrives while cancelling
# does not flip it."


def test_a_completing_worker_does_not_resurrect_a_revoked_job(calls, a):
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    calls.cancel(job, "0")
    ended = calls.value("select finished_at from pyjobs.job where id = %s", job)
    for call in (a.record, a.extend, a.release):
        with refused("PJ001"):
            call(batch)
    epoch = "select lease_epoch from pyjobs.batch where id = %s"
    assert calls.value(epoch, batch["batch_id"]) > batch["lease_epoch"]
    assert calls.status(job) == "REVOKED"
    assert calls.value("select finished_at from pyjobs.job where id = %s", job) == ended


def test_a_completion_that_arrives_while_cancelling_does_not_flip_it(calls, a):
    job = calls.enqueue(items=2)
    batches = calls.claim(job, 2)
    assert calls.cancel(job) == "CANCELING"
    assert a.record(batches[0])["job_status"] == "CANCELING"
    assert a.record(batches[1])["job_status"] == "REVOKED"
    assert calls.progress(job)["stages"][0]["processed"] == 2  # the good work is kept


@pytest.mark.parametrize("status", sorted(FINAL))
def test_the_owners_plain_update_does_not_resurrect_a_final_job(calls, status):
    job = in_state(calls, status)
    for change in (
        "status = 'PENDING', finished_at = null",
        "status = 'RETRY', finished_at = null",
        "run = run + 1",
        "status = 'CANCELING', finished_at = null, cancel_deadline = now()",
        "finished_at = now()",
        "finished_at = finished_at + interval '1 second'",
        "priority = 5",
        *(f"status = '{other}'" for other in FINAL - {status}),
    ):
        with refused("PJ003"):
            calls.do(f"update pyjobs_internal.job set {change} where id = %s", job)
    assert calls.status(job) == status


# "The status inside the progress document moves only when the guarded update fired."


def test_the_documents_status_moves_only_with_the_transition(calls, a):
    job = calls.enqueue(items=3)
    seen = []

    def look() -> None:
        shown = calls.progress(job)["summary"]["status"]
        assert shown == calls.status(job)
        seen.append(shown)

    look()
    first, second = calls.claim(job, 2)
    look()
    a.begin().record(first)
    look()
    a.rollback()
    look()
    calls.cancel(job)
    look()
    with refused("PJ003"):
        calls.finalize(job, "SUCCESS")
    look()
    calls.release(first)
    calls.record(second)
    look()
    assert seen == ["PENDING", *["STARTED"] * 3, *["CANCELING"] * 2, "REVOKED"]


# "The guard runs before the progress is saved, so that what is kept in memory and what is stored
# agree."


def test_a_call_returns_the_state_that_was_committed(calls, a):
    job = calls.enqueue(items=4, max_attempts=1)
    batches = calls.claim(job, 4)
    assert a.record(batches[0])["job_status"] == calls.status(job) == "STARTED"
    assert a.release(batches[1], "broken") == calls.status(job) == "STARTED"
    assert a.extend(batches[2])["job_status"] == calls.status(job) == "STARTED"
    assert a.cancel(job) == calls.status(job) == "CANCELING"
    assert a.extend(batches[2])["job_status"] == "CANCELING"
    assert a.record(batches[2])["job_status"] == calls.status(job) == "CANCELING"
    assert a.release(batches[3]) == calls.status(job) == "REVOKED"
    assert a.finalize(job) == {"transitioned": False, "status": "REVOKED"}


# "A real interleave, with threads and real transactions: a slow worker reads the job while it runs,
# another writer commits REVOKED, only then the slow worker saves."


@unlike_the_unrepaired_design(caught="overwrote the revocation")
def test_a_slow_worker_that_saves_after_a_revocation_does_not_overwrite_it(design):
    job = design.job(batches=1)
    slow, canceller = design.worker(job), design.canceller(job)
    slow.read()
    canceller.read()
    canceller.save()
    canceller.commit()
    assert design.status(job) == "REVOKED"
    ended = design.finished_at(job)
    slow.save()
    slow.commit()
    assert design.status(job) == "REVOKED", "the slow worker overwrote the revocation"
    assert design.finished_at(job) == ended


@unlike_the_unrepaired_design(caught="shown as running")
def test_a_late_result_does_not_make_a_finished_job_run_again(design):
    job = design.job(batches=2)
    first, second = design.worker(job), design.worker(job)
    late = design.again(first)
    late.read()
    for worker in (first, second):
        worker.read()
        worker.save()
        worker.commit()
    assert design.status(job) == "SUCCESS"
    late.save()
    late.commit()
    assert design.status(job) == "SUCCESS", "a finished job is shown as running"
    assert design.processed(job) == 2


# "CANCELING and REVOKED are guarded, so a cancel cannot overwrite a SUCCESS just committed; two
# tests, cancel against a completing batch in both directions."


@unlike_the_unrepaired_design(caught="overwrote the success")
def test_a_cancel_from_a_stale_look_does_not_overwrite_a_success(design):
    job = design.job(batches=1)
    worker, canceller = design.worker(job), design.canceller(job)
    canceller.read()
    worker.read()
    worker.save()
    worker.commit()
    assert design.status(job) == "SUCCESS"
    canceller.save()
    canceller.commit()
    assert design.status(job) == "SUCCESS", "the cancel overwrote the success"


@unlike_the_unrepaired_design(caught="overwrote the success")
def test_a_cancel_that_waits_for_the_completing_batch_does_not_overwrite_its_success(design):
    job = design.job(batches=1)
    worker, canceller = design.worker(job), design.canceller(job)
    worker.read()
    canceller.read()
    worker.save()
    cancel = canceller.session.start(canceller.save)
    canceller.session.waits_for(worker.session)
    worker.commit()
    cancel.result(SOON)
    canceller.commit()
    assert design.status(job) == "SUCCESS", "the cancel overwrote the success"


@unlike_the_unrepaired_design(caught="overwrote the revocation")
def test_a_completing_batch_that_waits_for_the_cancel_does_not_overwrite_it(design):
    job = design.job(batches=1)
    worker, canceller = design.worker(job), design.canceller(job)
    worker.read()
    canceller.read()
    canceller.save()
    save = worker.session.start(worker.save)
    worker.session.waits_for(canceller.session)
    canceller.commit()
    save.result(SOON)
    worker.commit()
    assert design.status(job) == "REVOKED", "the batch overwrote the revocation"


# "Cancel of a finished job changes no status but still releases what the job holds."


@pytest.mark.parametrize("status", sorted(FINAL))
def test_cancel_of_a_finished_job_changes_nothing_but_frees_its_leases(calls, a, status):
    job = in_state(calls, status)
    history = calls.history(job)
    # No call leaves a final job with a lease out; somebody's own hands might.
    (left,) = calls.rows(
        "update pyjobs_internal.batch set state = 'leased', lease_epoch = lease_epoch + 1, "
        "attempt = attempt + 1, worker = 'left over', leased_at = now(), "
        "lease_expires_at = now() where id = (select max(id) from pyjobs_internal.batch) "
        "returning id as batch_id, lease_epoch"
    )
    assert calls.cancel(job) == status
    assert calls.history(job) == history
    assert calls.value("select count(*) from pyjobs.batch where state = 'leased'") == 0
    with refused("PJ001"):
        a.record(left)


# "The task-runner's own 'done' and 'failed' signals are guarded; 'done' before the work is complete
# is deferred to the progress handler."


def test_done_before_the_work_is_complete_is_deferred_to_the_last_batch(calls, a):
    job = calls.enqueue(items=2)
    for batch in calls.claim(job, 2):
        assert calls.finalize(job) == {"transitioned": False, "status": "STARTED"}
        a.record(batch)
    assert calls.finalize(job) == {"transitioned": False, "status": "SUCCESS"}
    assert calls.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("signal", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_signal_does_not_move_a_job_that_is_cancelling_or_set_aside(calls, signal):
    for status in ("CANCELING", "UNKNOWN"):
        job = in_state(calls, status)
        with refused("PJ003"):
            calls.finalize(job, signal)
        assert calls.finalize(job) == {"transitioned": False, "status": status}


@pytest.mark.parametrize("status", sorted(FINAL))
def test_a_signal_for_a_final_job_is_told_its_state(calls, status):
    job = in_state(calls, status)
    for signal in (None, *FINAL):
        assert calls.finalize(job, signal) == {"transitioned": False, "status": status}
    assert calls.ends_of(job) == [status]


# "A failure also sets the finish time."


@pytest.mark.parametrize("by", ["threshold", "force", "decision", "cancel"])
def test_every_end_sets_the_finish_time(calls, by):
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    if by == "threshold":
        calls.record(batch, failed=[0])
    elif by == "force":
        calls.finalize(job, "FAILURE")
    elif by == "decision":
        calls.quarantine(job)
        calls.resolve(job, "FAILURE")
    else:
        calls.cancel(job, "0")
    assert calls.value("select finished_at is not null from pyjobs.job where id = %s", job)


def test_a_check_ties_the_finish_time_to_final_states(calls, admin):
    """Even where the guard is off, as a superuser can have it."""
    open_job = calls.enqueue(items=1)
    ended = in_state(calls, "FAILURE")
    admin.execute("set session_replication_role = replica")
    for job, change in (
        (open_job, "finished_at = now()"),
        (open_job, "status = 'FAILURE'"),
        (ended, "finished_at = null"),
        (ended, "status = 'PENDING'"),
    ):
        with pytest.raises(psycopg.errors.CheckViolation, match="job_fits"):
            admin.execute(f"update pyjobs_internal.job set {change} where id = %s".encode(), [job])


@pytest.mark.parametrize(
    "change",
    [
        "state = 'pending'",
        "state = 'recorded'",
        "lease_expires_at = null",
        "closed_at = now()",
        "item_count = 0",
        "failed_count = -1",
        "failed_count = item_count + 1",
    ],
)
def test_a_check_ties_what_a_batch_says(calls, change):
    """Whoever writes it: here the owner of the table."""
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    with pytest.raises(psycopg.errors.CheckViolation, match="batch_fits"):
        calls.do(f"update pyjobs_internal.batch set {change} where id = %s", batch["batch_id"])


# "A transient crash of the dispatcher does not fail a job whose work is in flight."


def test_losing_or_giving_back_one_batch_does_not_end_the_job(calls):
    calls.settable_clock()
    job = calls.enqueue(items=3, max_attempts=2)
    first, second, third = calls.claim(job, 3)
    assert calls.release(first) == "STARTED"
    assert calls.release(second, "the network was down") == "STARTED"
    calls.pass_time("2 minutes")
    assert [row["action"] for row in calls.reap()] == ["expired"]
    assert calls.status(job) == "STARTED"
    with refused("PJ001"):
        calls.record(third)
    calls.finish(job)
    assert calls.steps(job)[-1] == ("STARTED", "SUCCESS")


# "Work that completes for a job already final or cancelling is logged as a plain statement, with
# the stage and the state it would have had."


def test_a_refused_result_is_seen_with_its_stage_and_its_jobs_state(calls, a):
    job = calls.enqueue(items=2, stages=["collect"])
    batch, _ = calls.claim(job, 2)
    calls.cancel(job, "0", reason="changed my mind")
    with pytest.raises(psycopg.Error) as info:
        a.record(batch)
    assert f"Job {job} is REVOKED, run 1" in info.value.diag.message_detail
    assert "stage collect" in info.value.diag.message_detail
    assert "pyjobs.report_refused" in info.value.diag.message_hint
    said = []
    a.conn.add_notice_handler(lambda notice: said.append(notice.message_primary))
    a.begin().do("set local client_min_messages = log")
    a.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001', 'two sources found')",
        batch["batch_id"],
        batch["lease_epoch"],
    )
    a.commit()
    (line,) = said
    assert line == (
        f"pyjobs: late result refused (PJ001): batch {batch['batch_id']} of job {job}, "
        f"stage collect, run 1, lease epoch 1; the job is REVOKED"
    )
    kept = calls.row("select * from pyjobs.refused")
    assert (kept["stage"], kept["job_status"], kept["detail"]) == (
        "collect",
        "REVOKED",
        "two sources found",
    )


# "A result whose job is gone or final: information when that is normal cleanup, a warning with
# status, stage and age when the job still runs."


def test_late_results_are_of_two_classes(calls, a):
    """Normal where a cancel or a retry left it behind; suspicious where the job runs on."""
    calls.settable_clock()

    def report(batch: dict[str, Any]) -> tuple[str, str]:
        with refused("PJ001"):
            a.record(batch)
        a.do(
            "select pyjobs.report_refused(%s, %s, 'PJ001')",
            batch["batch_id"],
            batch["lease_epoch"],
        )
        row = calls.row("select * from pyjobs.refused order by at desc limit 1")
        assert row["job_id"] == batch["job_id"]
        return row["class"], row["job_status"]

    cancelled, retried, running = (calls.enqueue(items=2) for _ in range(3))
    late = {job: calls.claim(job)[0] for job in (cancelled, retried, running)}
    calls.cancel(cancelled, "0")
    assert report(late[cancelled]) == ("normal", "REVOKED")
    calls.finalize(retried, "FAILURE")
    calls.retry(retried)
    assert report(late[retried]) == ("normal", "RETRY")
    calls.pass_time("2 minutes")
    calls.reap()
    assert report(late[running]) == ("suspicious", "STARTED")
    assert "late results" in calls.findings(running)
    assert "late results" not in calls.findings(cancelled)
    assert "late results" not in calls.findings(retried)


# "The stale-job reaper revokes jobs without progress for N minutes, from a wider set of states than
# completion may leave, as a last resort; it re-checks under a lock; dry run."


def stale_job(calls: Session) -> int:
    """STARTED, with nothing out, though a worker asked for its queue and went away empty."""
    job = calls.enqueue("lost", items=2)
    (batch,) = calls.claim(job)
    calls.record(batch)
    calls.pass_time("1 hour")
    # Its offer is lost, by somebody's own hands: so it cannot be claimed by its queue.
    calls.do("delete from pyjobs_internal.offer")
    assert calls.ask("w", "lost") == []
    return job


def actions(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["action"], row["job_id"]) for row in rows]


def test_the_reaper_revokes_stale_jobs_as_the_last_resort(calls):
    calls.settable_clock()
    job = stale_job(calls)
    aside = in_state(calls, "UNKNOWN")
    cancelling = in_state(calls, "CANCELING")
    calls.pass_time("31 minutes")
    busy = calls.enqueue("busy", items=2)
    calls.claim(busy)
    assert ("revoked", job) not in actions(calls.reap())  # not unless asked to
    reaped = actions(calls.reap("30 minutes"))
    assert ("revoked", job) in reaped
    assert aside not in [job_id for _, job_id in reaped]
    assert calls.status(cancelling) == "REVOKED"
    assert calls.status(busy) == "STARTED"
    calls.pass_time("7 days")
    assert ("revoked", aside) in actions(calls.reap("30 minutes"))
    assert [calls.status(j) for j in (job, aside)] == ["REVOKED", "REVOKED"]


def test_the_reaper_does_not_take_a_backlog_for_stale(calls):
    """Workers are busy with other jobs of the queue, and do not go away empty."""
    calls.settable_clock()
    first, second = (calls.enqueue(items=2) for _ in range(2))
    assert {calls.ask("w", "default")[0]["job_id"] for _ in range(2)} == {first, second}
    calls.pass_time("1 day")
    calls.reap("30 minutes")
    assert calls.status(first) == calls.status(second) == "STARTED"


def test_the_reaper_looks_again_under_its_lock(calls, a, db, connect):
    calls.settable_clock()
    job = stale_job(calls)
    calls.pass_time("31 minutes")
    stops = Stops(db, connect(direct=True))
    stops.before("stop_serving", a)
    reap = a.start(a.reap, "30 minutes")
    a.waits_for(stops.holder)
    (batch,) = calls.claim(job)
    stops.go("stop_serving", a)
    assert ("revoked", job) not in actions(reap.result(SOON))
    assert calls.record(batch)["job_status"] == "SUCCESS"
    calls.do("delete from pyjobs_internal.offer")


def test_a_dry_run_of_the_reaper_says_all_and_changes_nothing(calls):
    calls.settable_clock()
    job = stale_job(calls)
    cancelling = in_state(calls, "CANCELING")
    dead = calls.enqueue(items=1, max_attempts=1)
    calls.claim(dead)
    calls.pass_time("31 minutes")

    def everything() -> list[Any]:
        return [
            calls.rows(f"select xmin, t::text from pyjobs_internal.{name} t order by t::text")
            for name in ("job", "stage", "batch", "history", "offer")
        ]

    before = everything()
    dry = actions(calls.reap("30 minutes", dry_run=True))
    assert set(dry) == {("expired", cancelling), ("failed", dead), ("revoked", job)}
    assert everything() == before
    assert actions(calls.reap("30 minutes")) == dry
    assert [calls.status(x) for x in (job, cancelling, dead)] == ["REVOKED", "REVOKED", "FAILURE"]


# "Before it, lost items are marked failed so that a job with good work ends by its threshold and is
# not revoked; the full list is logged, the document shows the first 10 and how many more."


def test_lost_items_fail_so_that_a_job_with_good_work_ends_by_its_threshold(calls):
    calls.settable_clock()
    job = calls.enqueue(items=30, batch_size=15, max_attempts=1, failure_threshold=0.5)
    good, _ = calls.claim(job, 2)
    calls.record(good)
    calls.pass_time("1 hour")
    reaped = calls.reap("30 minutes")
    assert actions(reaped) == [("failed", job)]
    assert calls.status(job) == "SUCCESS"
    document = calls.progress(job)
    assert document["stages"][0]["failed"] == 15
    assert len(document["errors"]) == 10
    assert document["more_errors"] == 5
    assert document["errors"][0]["item"] == 15
    listed = calls.rows(
        "select b.items from pyjobs.batch b where b.state = 'failed' and b.job_id = %s", job
    )
    assert [item for row in listed for item in row["items"]] == list(range(15, 30))


# "A job fails when more than half of its items failed."


@pytest.mark.parametrize(("failed", "status"), [(0, "SUCCESS"), (5, "SUCCESS"), (6, "FAILURE")])
def test_a_job_fails_when_more_than_half_of_its_items_failed(calls, failed, status):
    job = calls.enqueue(items=10, batch_size=5)
    batches = calls.claim(job, 2)
    for n, batch in enumerate(batches):
        mine = range(5) if failed >= 5 * (n + 1) else range(failed - 5 * n)
        calls.record(batch, failed=mine)
    assert calls.progress(job)["stages"][0]["failed"] == failed
    assert calls.status(job) == status


# "A job of which nothing is to be done ends at once as SUCCESS."


def test_an_empty_job_ends_at_once_as_success(calls):
    job = calls.enqueue(items=[])
    assert calls.steps(job) == [(None, "PENDING"), ("PENDING", "SUCCESS")]
    held = calls.enqueue(items=[], hold=True)
    assert calls.status(held) == "CREATED"
    assert calls.value("select pyjobs.release_job(%s)", held) == "SUCCESS"
    unsealed = calls.enqueue(items=[], seal=False)
    assert calls.status(unsealed) == "PENDING"
    assert calls.seal(unsealed) == "SUCCESS"


# "Counts of detections, classifications and captures may drift by a batch under race: left open."


@unlike_the_unrepaired_design(caught="lost a batch")
def test_two_results_at_once_are_both_counted(design):
    job = design.job(batches=3)
    first, second = design.worker(job), design.worker(job)
    first.read()
    second.read()
    first.save()
    first.commit()
    second.save()
    second.commit()
    assert design.processed(job) == 2, "the count lost a batch"


@unlike_the_unrepaired_design(caught="stuck")
def test_the_last_two_at_once_leave_nothing_outstanding(design):
    """The unrepaired job stands at 99.997 %, with all of its work done."""
    job = design.job(batches=2)
    first, second = design.worker(job), design.worker(job)
    first.read()
    second.read()
    first.save()
    save = second.session.start(second.save)
    second.session.waits_for(first.session)
    first.commit()
    save.result(SOON)
    second.commit()
    assert design.status(job) == "SUCCESS", "all is done and the job is stuck"


def test_counters_are_exact_while_many_record_at_once(calls, new_session):
    job = calls.enqueue(items=120, batch_size=2)

    def work(session: Session, name: str) -> None:
        while batches := session.claim(job, 2, worker=name):
            for batch in batches:
                found = batch["batch_id"] % 7
                session.record(batch, failed=[0][: batch["batch_id"] % 2],
                               counters={"detections": found, name: 1})  # fmt: skip

    workers = [new_session() for _ in range(6)]
    done = [w.start(work, w, f"w{n}") for n, w in enumerate(workers)]
    for future in done:
        future.result(SOON)
    ids = [row["id"] for row in calls.rows("select id from pyjobs.batch")]
    stage = calls.progress(job)["stages"][0]
    assert stage["counters"].pop("detections") == sum(i % 7 for i in ids)
    assert sum(stage["counters"].values()) == len(ids) == 60
    assert (stage["processed"], stage["failed"]) == (120, sum(i % 2 for i in ids))
    assert calls.status(job) == "SUCCESS"


# "A cancelled or wrongly running job stays claimable, is handed out for ever and starves newer
# ones; workers all converge on the head of the list."


@pytest.mark.parametrize("status", ["CREATED", "CANCELING", "UNKNOWN", *sorted(FINAL)])
def test_a_job_that_is_not_to_be_worked_is_not_handed_out(calls, status):
    job = in_state(calls, status)
    newer = calls.enqueue(items=1)
    assert [batch["job_id"] for batch in calls.ask("w", "default")] == [newer]
    assert calls.ask("w", "default") == []
    assert calls.claim(job) == []


def test_workers_do_not_all_converge_on_the_head_of_the_list(calls):
    jobs = [calls.enqueue(items=10) for _ in range(4)]
    served = [calls.ask(f"w{n}", "default")[0]["job_id"] for n in range(12)]
    for start in range(0, 12, 4):
        assert sorted(served[start : start + 4]) == jobs


def test_many_workers_at_once_serve_every_job(calls, new_session):
    jobs = {calls.enqueue(items=6) for _ in range(6)}
    meet = threading.Barrier(6)

    def ask(session: Session, name: str) -> int:
        meet.wait(SOON)
        (batch,) = session.ask(name, "default")
        return batch["job_id"]

    workers = [new_session() for _ in range(6)]
    asking = [w.start(ask, w, f"w{n}") for n, w in enumerate(workers)]
    served = {future.result(SOON) for future in asking}
    # Some of them may have taken what another held at that moment, once each.
    for _ in range(6):
        if served != jobs:
            served.add(calls.ask("late", "default")[0]["job_id"])
    assert served == jobs


# "On retry, what was queued for the earlier run is still delivered and counted."


def test_nothing_of_an_earlier_run_is_delivered_or_counted_in_the_next(calls, a):
    job = calls.enqueue(items=4)
    out, done, *_ = calls.claim(job, 2)
    calls.record(done, counters={"found": 7})
    calls.finalize(job, "FAILURE")
    calls.retry(job)
    for late in (out, done):
        with refused("PJ001" if late is out else "PJ002"):
            a.record(late, counters={"found": 100})
    assert calls.progress(job)["stages"][0] | {"key": None} == {
        "key": None,
        "status": "waiting",
        "progress": 0,
        "total": 4,
        "pending": 4,
        "leased": 0,
        "processed": 0,
        "failed": 0,
        "remaining": 4,
        "counters": {},
    }
    again = calls.claim(job, 9)
    assert {batch["run"] for batch in again} == {2}
    assert not {batch["batch_id"] for batch in again} & {out["batch_id"], done["batch_id"]}
    for batch in again:
        calls.record(batch, counters={"found": 1})
    assert calls.progress(job)["stages"][0]["counters"] == {"found": 4}


# "Results are acknowledged last, so that a crash before it redelivers, and every step before it
# must be idempotent."


def test_result_rows_and_their_acknowledgement_are_one_transaction(calls, a, admin):
    calls.settable_clock()
    calls.do("create table result (item int, found int)")
    job = calls.enqueue(items=2)
    (batch,) = calls.claim(job)
    a.begin().do("insert into result values (%s, 1)", batch["items"][0])
    a.record(batch)
    admin.execute("select pg_terminate_backend(%s, 20000)", [a.pid])
    assert calls.value("select count(*) from result") == 0
    assert calls.progress(job)["stages"][0]["leased"] == 1
    calls.pass_time("2 minutes")
    calls.reap()
    for again in calls.claim(job, 2):
        calls.begin().do("insert into result values (%s, 1)", again["items"][0])
        calls.record(again)
        calls.commit()
    assert calls.value("select array_agg(item order by item) from result") == [0, 1]
    assert calls.status(job) == "SUCCESS"


def test_a_refused_result_takes_its_rows_with_it(calls, a):
    calls.do("create table result (item int)")
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    calls.cancel(job, "0")
    a.begin().do("insert into result values (1)")
    with refused("PJ001"):
        a.record(batch)
    a.do("commit")  # which the server turns into a rollback
    assert calls.value("select count(*) from result") == 0


@unlike_the_unrepaired_design(caught="counted twice")
def test_a_result_that_is_delivered_again_counts_once(design):
    job = design.job(batches=3)
    worker = design.worker(job)
    worker.read()
    worker.save()
    worker.commit()
    again = design.again(worker)
    again.read()
    assert not again.save(), "a result was counted twice"
    again.commit()
    assert design.processed(job) == 1


# "Worker heartbeats: how many were online lately for this queue; a warning when none was seen for
# an hour."


def test_workers_seen_lately_are_listed_and_their_absence_is_told(calls):
    calls.settable_clock()
    job = calls.enqueue("images", items=3)
    assert "no worker" in calls.findings(job)
    (batch,) = calls.ask("w1", "images")
    calls.ask("w2", "images", "sounds")
    stats = "select worker, queues, leased_batches from pyjobs.active_workers()"
    assert [tuple(row.values()) for row in calls.rows(stats)] == [
        ("w1", ["images"], 1),
        ("w2", ["images", "sounds"], 1),
    ]
    workers = "select workers from pyjobs.queue_stats() where queue = 'images'"
    assert calls.value(workers) == 2
    assert "no worker" not in calls.findings(job)
    calls.pass_time("61 minutes")
    calls.reap()
    assert calls.rows(stats) == []
    assert "no worker" in calls.findings(job)
    calls.ask("w1", "images")
    assert "no worker" not in calls.findings(job)
    assert batch["job_id"] == job


# "Throughput and time left per job, from plain division over elapsed time."


def test_throughput_and_time_left_are_plain_division(calls):
    calls.settable_clock()
    job = calls.enqueue(items=30, batch_size=10)
    assert calls.progress(job)["summary"]["rate"] is None
    (batch,) = calls.claim(job)
    calls.pass_time("100 seconds")
    calls.record(batch)
    summary = calls.progress(job)["summary"]
    assert summary["rate"] == pytest.approx(0.1, rel=0.2)
    assert summary["seconds_left"] == pytest.approx(200, rel=0.2)
    calls.finish(job)
    assert calls.progress(job)["summary"]["seconds_left"] == 0
    assert json.loads(json.dumps(calls.progress(job))) == calls.progress(job)
