"""explain_job: every job that is not final gets a reason, with a remedy that works."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.calls import Calls

FOREVER = "1 day"


@pytest.fixture
def calls(db):
    return Calls(db)


def finding(calls, job, name):
    """The one row with this finding."""
    (row,) = [row for row in calls.explain(job) if row["finding"] == name]
    return row


def test_a_held_job_is_released_by_its_remedy(calls):
    job = calls.enqueue(hold=True)
    assert calls.findings(job) == ["held"]
    calls.do(finding(calls, job, "held")["remedy"])
    assert calls.status(job) == "PENDING"
    assert "held" not in calls.findings(job)


def test_a_job_for_later_says_from_when(calls):
    calls.settable_clock()
    job = calls.enqueue(run_at="2099-01-02 03:04:05")
    row = finding(calls, job, "scheduled later")
    assert row["evidence"] == "not before 2099-01-02 03:04"
    assert calls.findings(job) == ["scheduled later"]
    calls.pass_time("100 years")
    assert "scheduled later" not in calls.findings(job)
    assert "ready" in calls.findings(job)


def test_an_unsealed_job_is_sealed_by_its_remedy(calls):
    job = calls.enqueue(items=[], seal=False)
    assert calls.findings(job) == ["unsealed"]
    calls.do(finding(calls, job, "unsealed")["remedy"])
    assert calls.status(job) == "SUCCESS"


def test_a_paused_job_is_resumed_by_its_remedy(calls):
    job = calls.enqueue()
    calls.do("select pyjobs.pause_job(%s)", job)
    assert calls.findings(job) == ["paused"]
    calls.do(finding(calls, job, "paused")["remedy"])
    assert "paused" not in calls.findings(job)


def test_a_paused_queue_is_resumed_by_its_remedy(calls):
    job = calls.enqueue("it's mine")
    calls.do("select pyjobs.pause_queue('it''s mine')")
    assert calls.findings(job) == ["queue paused"]
    assert "it's mine" in finding(calls, job, "queue paused")["evidence"]
    calls.conn.execute(finding(calls, job, "queue paused")["remedy"].encode())
    assert "queue paused" not in calls.findings(job)


def test_a_stage_behind_a_barrier_names_the_stage_that_it_waits_for(calls):
    job = calls.enqueue(items=2, stages=["collect", "results"], barriers=["results"])
    first, _ = calls.claim(job, 2)
    assert "behind a barrier" not in calls.findings(job)
    calls.record(first, next_items=["x", "y"])
    row = finding(calls, job, "behind a barrier")
    assert row["evidence"] == "stage results: 2 batches"
    assert row["remedy"] == "wait until stage collect is done"


def test_a_job_behind_others_says_how_many_and_of_which_priority(calls):
    calls.enqueue("q", priority=5)
    calls.enqueue("q", priority=7)
    calls.enqueue("elsewhere", priority=9)
    paused = calls.enqueue("q", priority=8)
    calls.do("select pyjobs.pause_job(%s)", paused)
    calls.enqueue("q", priority=6, run_at="2099-01-01")
    job = calls.enqueue("q", priority=1)
    row = finding(calls, job, "behind other jobs")
    assert row["evidence"] == "2 jobs of higher priority, up to 7"
    assert "ready" in calls.findings(job)
    calls.do(row["remedy"])
    assert calls.ask("w", "q")[0]["job_id"] == job


def test_a_job_behind_equals_says_how_many_are_served_before_it(calls):
    first = calls.enqueue("q", items=5)
    calls.enqueue("q", items=5)
    job = calls.enqueue("q", items=5)
    assert finding(calls, job, "behind other jobs")["evidence"] == (
        "2 jobs of priority 0 come first"
    )
    assert "behind other jobs" not in calls.findings(first)
    assert calls.ask("w", "q")[0]["job_id"] == first
    assert "behind other jobs" not in calls.findings(first), "it has a lease out: it is worked"


def test_the_remedy_for_the_highest_priority_stays_within_its_range(calls):
    calls.enqueue("q", priority=2**31 - 1)
    job = calls.enqueue("q")
    calls.do(finding(calls, job, "behind other jobs")["remedy"])


def test_a_queue_that_nobody_asked_for_in_an_hour_is_a_finding(calls):
    calls.settable_clock()
    job = calls.enqueue("q")
    assert finding(calls, job, "no worker")["evidence"] == "nobody ever asked for its queue"
    calls.ask("other", "elsewhere")
    assert "no worker" in calls.findings(job)
    calls.do("select pyjobs.pause_job(%s)", job)
    calls.ask("w", "q")
    calls.do("select pyjobs.resume_job(%s)", job)
    assert calls.findings(job) == ["ready"]
    calls.pass_time("59 minutes")
    assert calls.findings(job) == ["ready"]
    calls.pass_time("2 minutes")
    assert calls.findings(job) == ["no worker", "ready"]
    assert finding(calls, job, "no worker")["evidence"].startswith("nobody asked since ")


def test_a_leased_job_says_by_whom_and_until_when(calls):
    job = calls.enqueue(items=3)
    calls.claim(job, 2, worker="ada", lease="10 minutes")
    calls.claim(job, 1, worker="bob", lease="5 minutes")
    ends = dict(
        calls.conn.execute(
            "select worker, to_char(max(lease_expires_at), 'HH24:MI') from pyjobs.batch"
            " group by worker"
        ).fetchall()
    )
    said = [row["evidence"] for row in calls.explain(job) if row["finding"] == "leased"]
    assert [text.split(" until")[0] for text in said] == ["bob has 1", "ada has 2"]
    for worker, text in zip(["bob", "ada"], said, strict=True):
        assert ends[worker] in text or "-" in text, "the date stands there past midnight"


def test_many_workers_are_bounded_to_a_few_rows(calls):
    job = calls.enqueue(items=300)
    for n in range(9):
        calls.claim(job, 3, worker=f"w{n}")
    rows = calls.explain(job)
    assert [row["evidence"].split(" until")[0] for row in rows if row["finding"] == "leased"] == [
        *(f"w{n} has 3" for n in range(5)),
        "4 workers more; 27 batches out in all",
    ]


def test_an_overdue_lease_is_taken_back_by_its_remedy(calls):
    calls.settable_clock()
    job = calls.enqueue(items=2)
    calls.claim(job, 1, worker="gone", lease="1 minute")
    calls.claim(job, 1, worker="there", lease="1 hour")
    assert "lease overdue" not in calls.findings(job)
    calls.pass_time("2 minutes")
    assert calls.findings(job)[:2] == ["lease overdue", "leased"]
    row = finding(calls, job, "lease overdue")
    assert row["evidence"].startswith("gone has 1 since ")
    calls.do(row["remedy"])
    assert "lease overdue" not in calls.findings(job)
    assert "ready" in calls.findings(job)


def test_a_batch_that_waits_for_a_retry_says_until_when_and_why(calls):
    calls.settable_clock()
    job = calls.enqueue(items=2)
    for batch in calls.claim(job, 2):
        calls.do(
            "select pyjobs.release_batch(%s, %s, E'disk\\nfull', '10 minutes')",
            batch["batch_id"],
            batch["lease_epoch"],
        )
    row = finding(calls, job, "waiting for a retry")
    assert row["evidence"].startswith("2 until ")
    assert row["evidence"].endswith(": disk full")
    assert "ready" not in calls.findings(job)
    calls.pass_time("11 minutes")
    assert "waiting for a retry" not in calls.findings(job)
    assert "ready" in calls.findings(job)


def test_a_cancelling_job_says_what_is_out_and_ends_by_its_remedy(calls):
    job = calls.enqueue(items=3)
    calls.claim(job, 2)
    calls.do("select pyjobs.cancel_job(%s, null, '10 minutes')", job)
    row = finding(calls, job, "cancelling")
    assert row["evidence"].startswith("2 leases out, until ")
    calls.do(row["remedy"])
    assert calls.status(job) == "REVOKED"


def test_a_cancelling_job_past_its_grace_is_ended_by_reap(calls):
    calls.settable_clock()
    job = calls.enqueue(items=3)
    calls.claim(job, 2, lease=FOREVER)
    calls.do("select pyjobs.cancel_job(%s, null, '10 minutes')", job)
    calls.pass_time("11 minutes")
    row = finding(calls, job, "cancelling")
    assert row["evidence"].startswith("2 leases out, overdue since ")
    calls.do(row["remedy"])
    assert calls.status(job) == "REVOKED"


def test_a_cancelling_job_with_nothing_out_is_ended_by_reap(calls):
    """What a cancel leaves that could not wait for a transaction in flight."""
    job = calls.enqueue(items=3)
    calls.claim(job)
    calls.do("select pyjobs.cancel_job(%s, null, '10 minutes')", job)
    calls.do(
        "update pyjobs_internal.batch set state = 'pending', lease_expires_at = null"
        " where job_id = %s",
        job,
    )
    row = finding(calls, job, "cancelling")
    assert row["evidence"] == "no lease is out any more"
    calls.do(row["remedy"])
    assert calls.status(job) == "REVOKED"


def test_a_quarantined_job_says_by_whom_and_why_and_goes_on_by_its_remedy(calls):
    job = calls.enqueue(items=3)
    calls.claim(job)
    calls.do("select pyjobs.quarantine_job(%s, 'odd results')", job)
    assert calls.findings(job) == ["quarantined"]
    row = finding(calls, job, "quarantined")
    assert "by quarantine_job: odd" in row["evidence"]
    calls.do(row["remedy"])
    assert calls.status(job) == "RETRY"


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_final_job_says_how_when_by_whom_and_why(calls, status):
    job = calls.enqueue(items=3)
    calls.claim(job)
    calls.do("select pyjobs.finalize_job(%s, %s, 'enough')", job, status)
    assert calls.findings(job) == ["final"]
    row = finding(calls, job, "final")
    assert row["evidence"].startswith(f"{status} ")
    assert row["evidence"].endswith("by finalize_job: enough")
    if status == "SUCCESS":
        assert row["remedy"] == "nothing to do"
    else:
        calls.do(row["remedy"])
        assert calls.status(job) == "RETRY"


def test_a_job_that_the_last_batch_ended_names_its_worker(calls):
    job = calls.enqueue()
    calls.record(calls.claim(job, worker="ada")[0])
    assert " by ada" in finding(calls, job, "final")["evidence"]


def test_a_job_that_can_be_claimed_is_ready(calls):
    job = calls.enqueue("q", items=3)
    assert finding(calls, job, "ready")["evidence"] == "3 batches can be claimed now"
    calls.ask("w", "q")
    assert finding(calls, job, "ready")["evidence"] == "2 batches can be claimed now"


def test_counting_stops_where_it_would_take_long(calls):
    job = calls.enqueue(items=10_002)
    assert finding(calls, job, "ready")["evidence"] == "over 10000 batches can be claimed now"


def test_suspicious_late_results_are_a_finding_for_a_day(calls):
    calls.settable_clock()
    job = calls.enqueue(items=3)
    (batch,) = calls.claim(job, lease="1 minute")
    calls.pass_time("2 minutes")
    calls.do("select pyjobs.reap()")
    calls.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001')", batch["batch_id"], batch["lease_epoch"]
    )
    row = finding(calls, job, "late results")
    assert row["evidence"].startswith("1 refused, last ")
    assert row["remedy"] == f"look in pyjobs.refused, job_id {job}"
    calls.pass_time("25 hours")
    assert "late results" not in calls.findings(job)


def test_late_results_after_a_cancel_are_no_finding(calls):
    job = calls.enqueue(items=3)
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.cancel_job(%s, null, '0')", job)
    calls.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001')", batch["batch_id"], batch["lease_epoch"]
    )
    assert calls.findings(job) == ["final"]


def test_a_complete_job_that_is_not_final_is_said_to_be_stuck(calls):
    """It cannot come about; if it does, the remedy ends it."""
    job = calls.enqueue()
    calls.do(
        "update pyjobs_internal.batch set state = 'recorded', closed_at = now(), lease_epoch = 1,"
        " attempt = 1 where job_id = %s",
        job,
    )
    assert calls.findings(job) == ["stuck"]
    calls.do(finding(calls, job, "stuck")["remedy"])
    assert calls.status(job) == "SUCCESS"


def test_a_job_whose_rows_contradict_each_other_is_handed_to_the_audit(calls):
    job = calls.enqueue()
    calls.do("delete from pyjobs_internal.stage where job_id = %s", job)
    assert calls.findings(job) == ["stuck"]
    assert calls.rows(finding(calls, job, "stuck")["remedy"])


def test_no_text_from_elsewhere_breaks_a_line_or_the_width(calls):
    calls.settable_clock()
    job = calls.enqueue("q" * 200, items=9, stages=["s" * 200, "t" * 200], barriers=["t" * 200])
    first, second, *_ = calls.claim(job, 4, worker="w\n" * 100, lease="1 minute")
    calls.record(first, next_items=[1])
    calls.do(
        "select pyjobs.release_batch(%s, %s, %s, '10 minutes')",
        second["batch_id"],
        second["lease_epoch"],
        "e\n" * 5000,
    )
    calls.pass_time("2 minutes")
    for row in calls.explain(job):
        assert "\n" not in row["evidence"] + row["remedy"]
        assert len(row["evidence"]) <= 48
    calls.do("select pyjobs.cancel_job(%s, %s, '0')", job, "r\n" * 5000)
    (row,) = calls.explain(job)
    assert "\n" not in row["evidence"]
    assert len(row["evidence"]) <= 48


def test_it_reads_well_in_psql_at_a_hundred_columns(calls, database):
    """All at once: a job in trouble, as an operator's terminal shows it."""
    calls.settable_clock()
    calls.enqueue("survey", priority=10)
    calls.do("select setval('pyjobs_internal.job_id', 1234)")
    job = calls.enqueue("survey", items=40, stages=["collect", "process"], barriers=["process"])
    batches = calls.claim(job, 4, worker="worker-12@gpu-3", lease="1 minute")
    calls.record(batches[0], next_items=[1, 2])
    calls.claim(job, 4, worker="worker-13@gpu-3", lease="1 hour")
    calls.do(
        "select pyjobs.release_batch(%s, %s, 'out of memory', '10 minutes')",
        batches[1]["batch_id"],
        batches[1]["lease_epoch"],
    )
    calls.pass_time("2 minutes")
    calls.do("select pyjobs.pause_job(%s)", job)
    shown = _psql(database, f"select * from pyjobs.explain_job({job})")
    calls.do("select pyjobs.resume_job(%s)", job)
    shown += _psql(database, f"select * from pyjobs.explain_job({job})")
    for line in shown.splitlines():
        assert len(line) <= 100, line
    assert "lease overdue" in shown
    assert "behind a barrier" in shown
    assert "behind other jobs" in shown


def _psql(database, query):
    run = subprocess.run(
        [database.cluster.psql_path, "-X", "-d", database.dsn, "-c", query],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_operators_and_readers_may_ask(calls, as_role):
    job = calls.enqueue()
    for role in ("operator", "reader"):
        assert Calls(as_role(role)).findings(job) == ["no worker", "ready"]
