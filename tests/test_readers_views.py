"""The relations that people look at, and the history: true, complete, and not to be written."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from tests.support.calls import Calls


@pytest.fixture
def calls(db):
    return Calls(db)


def job_row(calls, job):
    return calls.row("select * from pyjobs.job where id = %s", job)


def test_a_job_shows_what_it_was_made_of(calls):
    job = calls.enqueue(
        "survey",
        items=3,
        params={"k": 1},
        batch_size=2,
        priority=7,
        run_at="2099-01-01 00:00:00+00",
        name="first light",
        dedupe_key="key",
        failure_threshold=0.25,
        max_attempts=5,
        stages=["one", "two"],
        seal=False,
    )
    row = job_row(calls, job)
    shown = {
        "id": job,
        "queue": "survey",
        "name": "first light",
        "status": "PENDING",
        "run": 1,
        "priority": 7,
        "params": {"k": 1},
        "batch_size": 2,
        "max_attempts": 5,
        "dedupe_key": "key",
        "sealed": False,
        "paused": False,
        "queue_paused": False,
        "started_at": None,
        "finished_at": None,
        "finished_by": None,
        "reason": None,
        "cancel_deadline": None,
        "stages": ["one", "two"],
    }
    assert row | shown == row
    assert float(row["failure_threshold"]) == 0.25
    assert row["run_at"].year == 2099
    assert row["created_by"] == calls.value("select current_user")


def test_a_job_is_started_with_its_first_claim_in_each_run(calls):
    job = calls.enqueue(items=2)
    assert job_row(calls, job)["status"] == "PENDING"
    first, second = calls.claim(job, 2)
    row = job_row(calls, job)
    assert (row["status"], row["finished_at"]) == ("STARTED", None)
    started = row["started_at"]
    assert started == calls.value(
        "select leased_at from pyjobs.batch where id = %s", first["batch_id"]
    )
    calls.record(first)
    assert job_row(calls, job)["started_at"] == started
    calls.record(second)
    row = job_row(calls, job)
    assert (row["status"], row["finished_by"], row["started_at"]) == ("SUCCESS", "w", started)
    assert row["finished_at"] is not None
    calls.do("select pyjobs.retry_job(%s)", job)
    row = job_row(calls, job)
    assert (row["status"], row["run"], row["started_at"], row["finished_at"]) == (
        "RETRY",
        2,
        None,
        None,
    )
    calls.claim(job)
    row = job_row(calls, job)
    assert row["status"] == "STARTED"
    assert row["started_at"] > started


def test_a_job_that_goes_on_after_a_quarantine_keeps_its_start(calls):
    job = calls.enqueue(items=2)
    calls.claim(job)
    started = job_row(calls, job)["started_at"]
    calls.do("select pyjobs.quarantine_job(%s, 'why')", job)
    assert job_row(calls, job)["status"] == "UNKNOWN"
    calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'why')", job)
    row = job_row(calls, job)
    assert (row["status"], row["started_at"]) == ("RETRY", started)
    calls.claim(job)
    row = job_row(calls, job)
    assert (row["status"], row["started_at"]) == ("STARTED", started)


def test_pauses_and_cancels_show(calls):
    job = calls.enqueue("q", items=2)
    calls.claim(job)
    calls.do("select pyjobs.pause_job(%s)", job)
    calls.do("select pyjobs.pause_queue('q')")
    calls.do("select pyjobs.cancel_job(%s, 'enough', '1 hour')", job)
    row = job_row(calls, job)
    assert (row["status"], row["paused"], row["queue_paused"]) == ("CANCELING", True, True)
    assert row["cancel_deadline"] is not None
    calls.do("select pyjobs.cancel_job(%s, 'enough', '0')", job)
    row = job_row(calls, job)
    assert (row["status"], row["cancel_deadline"]) == ("REVOKED", None)


def test_the_view_says_what_the_functions_say(calls):
    """The effective status has two homes, which must agree: in place here, a function there."""
    calls.enqueue(hold=True)
    for end in ("", "quarantine_job", "cancel_job"):
        job = calls.enqueue(items=2)
        calls.enqueue(items=2)
        calls.claim(job)
        if end:
            calls.do(f"select pyjobs.{end}({job}, 'why')")
        if end == "quarantine_job":
            calls.do(f"select pyjobs.resolve_job({job}, 'RETRY', 'why')")
    job = calls.enqueue()
    calls.finish(job)
    rows = calls.rows(
        "select v.status, pyjobs_internal.effective_status(j.status, j.id, j.era) as called"
        " from pyjobs.job v join pyjobs_internal.job j using (id)"
    )
    assert [row["status"] for row in rows] == [row["called"] for row in rows]
    assert {row["status"] for row in rows} >= {
        "CREATED",
        "PENDING",
        "STARTED",
        "RETRY",
        "CANCELING",
        "SUCCESS",
    }


def test_batches_show_their_life(calls):
    job = calls.enqueue(items=["a", "b", "c"], batch_size=2, stages=["one", "two"])

    def batches():
        return calls.rows("select * from pyjobs.batch where job_id = %s order by id", job)

    first, second = batches()
    shown = {
        "job_id": job,
        "run": 1,
        "stage": "one",
        "state": "pending",
        "attempt": 0,
        "lease_epoch": 0,
        "worker": None,
        "lease_expires_at": None,
        "due_at": None,
        "item_count": 2,
        "succeeded_count": 0,
        "failed_count": 0,
        "items": ["a", "b"],
        "failed": None,
        "counters": None,
        "error": None,
        "leased_at": None,
        "closed_at": None,
    }
    assert first | shown == first
    assert second["items"] == ["c"]

    lease, other = calls.claim(job, 2, worker="ada")
    first, second = batches()
    assert (first["state"], first["worker"], first["attempt"], first["lease_epoch"]) == (
        "leased",
        "ada",
        1,
        1,
    )
    assert first["lease_expires_at"] == lease["lease_expires_at"]
    calls.record(lease, failed=[1], counters={"n": 1}, next_items=["x"])
    calls.do(
        "select pyjobs.release_batch(%s, %s, 'oops', '1 hour')",
        other["batch_id"],
        other["lease_epoch"],
    )
    first, second, third = batches()
    assert (first["state"], first["succeeded_count"], first["failed_count"]) == ("recorded", 1, 1)
    assert (first["failed"], first["counters"]) == (
        [{"index": 1, "error": "error 1"}],
        {"n": 1},
    )
    assert first["closed_at"] is not None
    assert (second["state"], second["error"]) == ("pending", "oops")
    assert second["due_at"] is not None
    assert (third["stage"], third["state"], third["items"]) == ("two", "pending", ["x"])


def test_items_that_are_null_stand_for_the_params(calls):
    job = calls.enqueue(params={"k": 1})
    row = calls.row("select items, item_count from pyjobs.batch where job_id = %s", job)
    assert row == {"items": None, "item_count": 1}


def test_late_results_show_with_their_class(calls):
    cancelled, running = calls.enqueue(items=2), calls.enqueue(items=2)
    for job in (cancelled, running):
        (batch,) = calls.claim(job)
        if job == cancelled:
            calls.do("select pyjobs.cancel_job(%s, null, '0')", job)
        else:
            calls.do("select pyjobs.release_batch(%s, %s)", batch["batch_id"], batch["lease_epoch"])
        calls.do(
            "select pyjobs.report_refused(%s, %s, 'PJ001', 'too late')",
            batch["batch_id"],
            batch["lease_epoch"],
        )
    rows = calls.rows("select * from pyjobs.refused order by job_id")
    assert [(row["job_id"], row["job_status"], row["class"]) for row in rows] == [
        (cancelled, "REVOKED", "normal"),
        (running, "STARTED", "suspicious"),
    ]
    assert {(row["stage"], row["run"], row["sqlstate"], row["detail"]) for row in rows} == {
        ("process", 1, "PJ001", "too late")
    }


RELATIONS = ("job", "batch", "refused")


@pytest.mark.parametrize("role", [None, "operator", "reader", "worker", "producer"])
def test_nobody_can_write_through_a_relation(calls, as_role, role):
    job = calls.enqueue(items=2)
    calls.claim(job)
    session = Calls(as_role(role))
    for relation in RELATIONS:
        for change in (
            f"update pyjobs.{relation} set run = run",
            f"delete from pyjobs.{relation}",
            f"insert into pyjobs.{relation} (run) values (1)",
        ):
            with pytest.raises(psycopg.Error) as caught:
                session.do(change)
            # The owner may do anything; but these are no relations that can be written.
            assert caught.value.sqlstate in ({"55000"} if role is None else {"55000", "42501"})


@pytest.mark.parametrize("role", ["operator", "reader", "worker", "producer"])
def test_operators_and_readers_may_look_and_others_may_not(calls, as_role, role):
    calls.enqueue()
    session = Calls(as_role(role))
    for relation in RELATIONS:
        query = f"select * from pyjobs.{relation}"
        if role in ("operator", "reader"):
            assert len(session.rows(query)) == (0 if relation == "refused" else 1)
        else:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.rows(query)


def test_looking_up_a_job_or_the_newest_of_a_queue_reads_few_rows(calls):
    """By an index, and nothing is computed for the rows that are not shown."""
    calls.do(
        "select pyjobs.enqueue_jobs('q', (select jsonb_agg(n) from generate_series(1, 3000) n))"
    )
    calls.ask("w", "q")
    calls.do("analyze")
    for query in (
        "select * from pyjobs.job where id = 1500",
        "select * from pyjobs.job where queue = 'q' order by id desc limit 10",
        "select * from pyjobs.batch where id = 1500",
        "select * from pyjobs_internal.timeline where job_id = 1500",
    ):
        plan = calls.value(f"explain (analyze, format json, timing off) {query}")[0]["Plan"]
        assert rows_read(plan) < 100, query


def rows_read(plan):
    """Rows that a plan's scans went through."""
    own = 0
    if plan["Node Type"].endswith("Scan") and plan["Node Type"] != "Subquery Scan":
        own = plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    return own + sum(rows_read(part) for part in plan.get("Plans", []))


def test_the_history_of_a_plain_job(calls):
    job = calls.enqueue()
    (batch,) = calls.claim(job, worker="ada")
    calls.record(batch)
    made, claimed, ended = calls.history(job)
    user = calls.value("select session_user::text")
    assert (made["from_status"], made["to_status"], made["by"]) == (None, "PENDING", "enqueue_job")
    assert (claimed["to_status"], claimed["by"], claimed["reason"]) == (
        "STARTED",
        "ada",
        "the first claim",
    )
    assert (ended["from_status"], ended["to_status"], ended["by"]) == ("STARTED", "SUCCESS", "ada")
    assert {row["session_role"] for row in (made, claimed, ended)} == {user}
    assert made["at"] <= claimed["at"] <= ended["at"]
    assert {row["run"] for row in (made, claimed, ended)} == {1}


def test_the_history_says_who_was_logged_in(calls, as_role, database):
    producer, worker, operator = (
        Calls(as_role(role)) for role in ("producer", "worker", "operator")
    )
    job = producer.enqueue(items=2)
    worker.claim(job)
    operator.do("select pyjobs.cancel_job(%s, 'enough', '0')", job)
    logins = database.cluster.logins
    assert [row["session_role"] for row in calls.history(job)] == [
        logins["producer"],
        logins["worker"],
        logins["operator"],
    ]
    assert calls.history(job)[-1]["reason"] == "enough"


@pytest.mark.parametrize(
    ("calls_made", "steps"),
    [
        (["cancel_job({})"], ["CREATED", "REVOKED"]),
        (["release_job({})"], ["CREATED", "PENDING"]),
        (
            ["release_job({})", "quarantine_job({}, 'a')", "resolve_job({}, 'FAILURE', 'b')"],
            ["CREATED", "PENDING", "UNKNOWN", "FAILURE"],
        ),
        (["finalize_job({}, 'SUCCESS')"], ["CREATED", "SUCCESS"]),
    ],
)
def test_the_history_of_a_job_that_was_held(calls, calls_made, steps):
    job = calls.enqueue(hold=True)
    for call in calls_made:
        calls.do(f"select pyjobs.{call.format(job)}")
    assert [to for _, to in calls.steps(job)] == steps


def test_the_history_is_one_chain_over_quarantines_and_runs(calls):
    job = calls.enqueue(items=3)
    calls.claim(job, worker="one")
    calls.do("select pyjobs.quarantine_job(%s, 'a')", job)
    calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'b')", job)
    calls.do("select pyjobs.quarantine_job(%s, 'c')", job)
    calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'd')", job)
    calls.claim(job, worker="two")
    calls.do("select pyjobs.cancel_job(%s, 'e', '0')", job)
    calls.do("select pyjobs.retry_job(%s)", job)
    calls.claim(job, worker="three")
    calls.do("select pyjobs.finalize_job(%s, 'FAILURE', 'f')", job)
    calls.do("select pyjobs.retry_job(%s, true)", job)
    rows = calls.history(job)
    assert [(row["run"], row["to_status"], row["by"]) for row in rows] == [
        (1, "PENDING", "enqueue_job"),
        (1, "STARTED", "one"),
        (1, "UNKNOWN", "quarantine_job"),
        (1, "RETRY", "resolve_job"),
        (1, "UNKNOWN", "quarantine_job"),
        (1, "RETRY", "resolve_job"),
        (1, "STARTED", "two"),
        (1, "REVOKED", "cancel_job"),
        (2, "RETRY", "retry_job"),
        (2, "STARTED", "three"),
        (2, "FAILURE", "finalize_job"),
        (3, "RETRY", "retry_job"),
    ]
    for before, after in itertools.pairwise(rows):
        assert after["from_status"] == before["to_status"]
        assert after["at"] >= before["at"]
    assert calls.audit(job) == []


def test_a_claim_that_a_cancel_could_not_wait_for_leaves_the_chain_whole(calls, connect):
    """It was in flight while CANCELING was committed: nobody ever saw the job STARTED."""
    job = calls.enqueue(items=2)
    claimer = connect(autocommit=False)
    Calls(claimer).claim(job)
    calls.do("select pyjobs.cancel_job(%s, null, '0')", job)
    claimer.commit()
    assert calls.status(job) == "CANCELING"
    assert calls.steps(job) == [(None, "PENDING"), ("PENDING", "CANCELING")]
    assert calls.audit(job) == []
    calls.do("select pyjobs.reap()")
    assert calls.status(job) == "REVOKED"
    calls.do("select pyjobs.retry_job(%s)", job)
    calls.claim(job, worker="later")
    assert [to for _, to in calls.steps(job)] == [
        "PENDING",
        "CANCELING",
        "REVOKED",
        "RETRY",
        "STARTED",
    ]
    assert calls.history(job)[-1]["by"] == "later"
    assert calls.audit(job) == []


def test_first_claims_that_overlap_make_one_step(calls, connect):
    job = calls.enqueue(items=2)
    one, two = connect(autocommit=False), connect(autocommit=False)
    Calls(one).claim(job, worker="one")
    Calls(two).claim(job, worker="two")
    two.commit()
    one.commit()
    assert calls.value("select count(*) from pyjobs_internal.job_start") == 2
    assert [row["by"] for row in calls.history(job)] == ["enqueue_job", "one"]
