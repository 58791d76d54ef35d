"""job_progress: one document, derived from the rows that the status is made from."""

from __future__ import annotations

import threading

import psycopg
import pytest

from tests.support.calls import Calls


@pytest.fixture
def calls(db):
    return Calls(db)


def test_a_new_job_has_everything_before_it(calls):
    job = calls.enqueue(items=10, batch_size=3)
    assert calls.progress(job) == {
        "summary": {"status": "PENDING", "progress": 0, "rate": None, "seconds_left": None},
        "stages": [
            {
                "key": "process",
                "status": "waiting",
                "progress": 0,
                "total": 10,
                "pending": 10,
                "leased": 0,
                "processed": 0,
                "failed": 0,
                "remaining": 10,
                "counters": {},
            }
        ],
        "errors": [],
        "more_errors": 0,
    }


def test_counts_are_items_and_add_up_at_each_step(calls):
    job = calls.enqueue(items=10, batch_size=4)
    first, second = calls.claim(job, 2)
    calls.record(first, failed=[1], counters={"sources": 7})
    (stage,) = calls.progress(job)["stages"]
    assert stage == {
        "key": "process",
        "status": "running",
        "progress": 0.4,
        "total": 10,
        "pending": 2,
        "leased": 4,
        "processed": 4,
        "failed": 1,
        "remaining": 6,
        "counters": {"sources": 7},
    }
    calls.record(second, counters={"sources": 2, "stars": 1})
    calls.finish(job)
    document = calls.progress(job)
    assert document["summary"]["status"] == "SUCCESS"
    assert document["summary"]["progress"] == 1
    assert document["stages"][0] | {"counters": None} == {
        "key": "process",
        "status": "done",
        "progress": 1,
        "total": 10,
        "pending": 0,
        "leased": 0,
        "processed": 10,
        "failed": 1,
        "remaining": 0,
        "counters": None,
    }
    assert document["stages"][0]["counters"] == {"sources": 9, "stars": 1}


def test_a_job_of_which_nothing_is_to_be_done_is_complete(calls):
    job = calls.enqueue(items=[])
    document = calls.progress(job)
    assert document["summary"] == {
        "status": "SUCCESS",
        "progress": 1,
        "rate": None,
        "seconds_left": 0,
    }
    assert document["stages"][0]["progress"] == 1


def test_an_empty_stage_that_is_not_done_has_not_begun(calls):
    job = calls.enqueue(items=2, stages=["collect", "results"], barriers=["results"])
    collect, results = calls.progress(job)["stages"]
    assert (collect["status"], results["status"], results["progress"]) == ("waiting", "waiting", 0)
    batch, _ = calls.claim(job, 2)
    collect, results = calls.progress(job)["stages"]
    assert (collect["status"], results["status"]) == ("running", "waiting")
    calls.record(batch, next_items=["x"])
    document = calls.progress(job)
    assert [s["progress"] for s in document["stages"]] == [0.5, 0]
    assert document["summary"]["progress"] == 0.25


def test_no_rounding_says_that_all_is_done_before_it_is(calls):
    job = calls.enqueue(items=100_000, batch_size=99_999)
    (batch,) = calls.claim(job)
    calls.record(batch)
    document = calls.progress(job)
    assert document["stages"][0]["progress"] == 0.9999
    assert document["summary"]["progress"] == 0.9999
    assert document["summary"]["status"] == "STARTED"
    calls.finish(job)
    assert calls.progress(job)["summary"]["progress"] == 1


def test_errors_are_the_first_ten_with_their_items_and_the_rest_is_counted(calls):
    job = calls.enqueue(items=[f"tile {n}" for n in range(30)], batch_size=8, failure_threshold=1)
    batches = calls.claim(job, 4)
    calls.record(batches[1], failed=range(8))
    calls.record(batches[0], failed=[6, 3])
    document = calls.progress(job)
    assert document["errors"] == [
        {"stage": "process", "item": "tile 3", "error": "error 3"},
        {"stage": "process", "item": "tile 6", "error": "error 6"},
        *({"stage": "process", "item": f"tile {8 + n}", "error": f"error {n}"} for n in range(8)),
    ]
    assert document["more_errors"] == 0
    calls.record(batches[2], failed=[0, 1, 2])
    document = calls.progress(job)
    assert len(document["errors"]) == 10
    assert document["more_errors"] == 3


def test_the_items_of_a_batch_whose_attempts_are_used_up_are_listed_with_its_error(calls):
    job = calls.enqueue(items=["a", "b"], batch_size=2, max_attempts=1, params={"k": 1})
    (batch,) = calls.claim(job)
    calls.do(
        "select pyjobs.release_batch(%s, %s, 'out of memory')",
        batch["batch_id"],
        batch["lease_epoch"],
    )
    document = calls.progress(job)
    assert document["summary"]["status"] == "FAILURE"
    assert document["errors"] == [
        {"stage": "process", "item": "a", "error": "out of memory"},
        {"stage": "process", "item": "b", "error": "out of memory"},
    ]
    assert document["stages"][0]["failed"] == 2


def test_the_failed_item_of_a_job_without_items_is_its_params(calls):
    job = calls.enqueue(params={"k": 1})
    (batch,) = calls.claim(job)
    calls.record(batch, failed=[0])
    assert calls.progress(job)["errors"] == [
        {"stage": "process", "item": {"k": 1}, "error": "error 0"}
    ]


def test_a_whole_number_may_be_written_with_a_fraction_of_zero(calls):
    job = calls.enqueue(items=["a", "b"], batch_size=2)
    (batch,) = calls.claim(job)
    calls.row(
        "select * from pyjobs.record_batch(%s, %s, %s, %s)",
        batch["batch_id"],
        batch["lease_epoch"],
        '[{"index": 1.0, "error": "bad"}]',
        '{"stars": 2.0}',
    )
    document = calls.progress(job)
    assert document["errors"] == [{"stage": "process", "item": "b", "error": "bad"}]
    assert document["stages"][0]["counters"] == {"stars": 2}
    assert calls.audit(job) == []


def test_a_run_for_the_failed_items_shows_beside_it_what_was_carried_over(calls):
    job = calls.enqueue(items=4, failure_threshold=0)
    batches = calls.claim(job, 4)
    for n, batch in enumerate(batches):
        calls.record(batch, failed=[0] if n == 0 else [], counters={"stars": n})
    assert calls.status(job) == "FAILURE"
    assert "carried" not in calls.progress(job)["stages"][0]
    calls.do("select pyjobs.retry_job(%s, true)", job)

    document = calls.progress(job)
    (stage,) = document["stages"]
    assert stage["carried"] == {"succeeded": 3, "counters": {"stars": 6}}
    assert (stage["total"], stage["pending"], stage["counters"]) == (1, 1, {})
    assert document["summary"] == {
        "status": "RETRY",
        "progress": 0,
        "rate": None,
        "seconds_left": None,
    }
    assert document["errors"] == []

    calls.finish(job, counters={"stars": 5})
    (stage,) = calls.progress(job)["stages"]
    assert stage["carried"] == {"succeeded": 3, "counters": {"stars": 6}}
    assert (stage["total"], stage["processed"], stage["counters"]) == (1, 1, {"stars": 5})

    calls.do("select pyjobs.retry_job(%s)", job)
    (stage,) = calls.progress(job)["stages"]
    assert stage["total"] == 4
    assert "carried" not in stage


def test_the_rate_is_plain_division_and_tells_the_time_left(calls):
    calls.settable_clock()
    job = calls.enqueue(items=30, batch_size=10)
    first, second, third = calls.claim(job, 3, lease="1 day")
    calls.pass_time("100 seconds")
    calls.record(first)
    summary = calls.progress(job)["summary"]
    assert summary["rate"] == pytest.approx(0.1, rel=0.1)
    assert summary["seconds_left"] == pytest.approx(200, rel=0.1)
    calls.record(second)
    calls.record(third)
    # It stays what it was when the job ended.
    calls.pass_time("1 day")
    summary = calls.progress(job)["summary"]
    assert summary["rate"] == pytest.approx(0.3, rel=0.1)
    assert summary["seconds_left"] == 0


def test_a_revoked_job_shows_what_was_done_of_it(calls):
    job = calls.enqueue(items=4, stages=["a", "b", "c"], barriers=["c"])
    batch = calls.claim(job)[0]
    calls.record(batch, next_items=["x"])
    calls.do("select pyjobs.cancel_job(%s)", job)
    document = calls.progress(job)
    assert document["summary"]["status"] == "REVOKED"
    assert [s["status"] for s in document["stages"]] == ["running", "waiting", "waiting"]
    assert document["summary"]["progress"] == pytest.approx(0.25 / 3, abs=1e-4)
    assert document["summary"]["seconds_left"] == 0


def test_status_and_counts_cannot_disagree(calls, connect):
    """A reader in a loop, while jobs end: SUCCESS comes with the last item."""
    stop = threading.Event()
    wrong: list[object] = []
    seen: set[tuple[str, int]] = set()
    ids: list[int] = []

    def look() -> None:
        reader = Calls(connect())
        while not stop.is_set():
            for job in ids[-2:]:
                document = reader.progress(job)
                (stage,) = document["stages"]
                done = stage["processed"] == stage["total"]
                ended = document["summary"]["status"] == "SUCCESS"
                seen.add((document["summary"]["status"], stage["processed"]))
                if done != ended or stage["total"] != 3:
                    wrong.append(document)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        while len(ids) < 150 or not any(status == "SUCCESS" for status, _ in seen):
            ids.append(calls.enqueue(items=3))
            calls.finish(ids[-1])
            assert len(ids) < 5000, "the reader saw no job end"
    finally:
        stop.set()
        reader.join(20)
    assert wrong == []


@pytest.mark.parametrize("function", ["job_progress", "audit_job", "explain_job", "job_history"])
def test_a_reader_sees_the_moment_at_which_its_statement_began(
    calls, connect, background, wait_for_lock, function
):
    """However long it takes: a job that ends meanwhile is shown as it was, in all its parts."""
    job = calls.enqueue(items=2)
    calls.record(calls.claim(job)[0])
    before = calls.rows(f"select pyjobs.{function}(%s)", job)
    gate = Calls(connect(direct=True))
    gate.do("select pg_advisory_lock(1)")
    reader = connect()
    call = background(
        Calls(reader).rows,
        f"select (select 1 from pg_advisory_xact_lock(1)), pyjobs.{function}(%s)",
        job,
    )
    wait_for_lock(reader)
    calls.finish(job)
    assert calls.status(job) == "SUCCESS"
    gate.do("select pg_advisory_unlock(1)")
    seen = [{function: row[function]} for row in call.result(20)]
    for rows in (before, seen):
        for row in rows:
            if function == "job_progress":
                # These go by the clock.
                del row[function]["summary"]["rate"], row[function]["summary"]["seconds_left"]
    assert seen == before


def test_the_counters_of_a_stage_add_up_beyond_a_bigint(calls):
    largest = 2**63 - 1
    job = calls.enqueue(items=2)
    for batch in calls.claim(job, 2):
        calls.record(batch, counters={"photons": largest})
    assert calls.progress(job)["stages"][0]["counters"] == {"photons": 2 * largest}
    assert calls.audit(job) == []


def test_every_role_may_ask_for_progress(calls, as_role):
    job = calls.enqueue()
    for role in ("producer", "worker", "operator", "reader"):
        assert Calls(as_role(role)).progress(job)["summary"]["status"] == "PENDING"


def test_an_unknown_job_is_refused(calls):
    for function in ("job_progress", "explain_job", "job_history", "audit_job"):
        with pytest.raises(psycopg.Error, match="there is no job 12345") as caught:
            calls.rows(f"select pyjobs.{function}(12345)")
        assert caught.value.sqlstate == "PJ004"


def test_a_null_job_is_refused(calls):
    for function in ("job_progress", "explain_job", "job_history"):
        with pytest.raises(psycopg.Error, match="argument job_id must be") as caught:
            calls.rows(f"select pyjobs.{function}(null)")
        assert caught.value.sqlstate == "PJ005"


def test_readers_work_at_any_isolation_level_and_lock_nothing(calls, connect):
    job = calls.enqueue(items=3)
    calls.claim(job)
    holder = connect(autocommit=False)
    holder.execute("select from pyjobs_internal.job for update")
    holder.execute("select from pyjobs_internal.batch for update")
    reader = connect("reader", autocommit=False, options="-c statement_timeout=10s")
    for level in psycopg.IsolationLevel:
        reader.isolation_level = level
        reader.read_only = True
        asked = Calls(reader)
        assert asked.progress(job)["summary"]["status"] == "STARTED"
        assert asked.findings(job)
        assert asked.audit(job) == []
        assert asked.audit() == []
        assert len(asked.history(job)) == 2
        assert asked.rows("select * from pyjobs.queue_stats()")
        assert asked.rows("select * from pyjobs.active_workers()")
        reader.rollback()
