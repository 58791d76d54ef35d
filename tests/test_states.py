"""Every state against every call, and what becomes of a job from its making to its next run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

    Connection = psycopg.Connection[Any]

FINAL = ("SUCCESS", "FAILURE", "REVOKED")


@pytest.fixture
def calls(db: Connection) -> Calls:
    """Calls with a clock that can be put ahead."""
    calls = Calls(db)
    calls.settable_clock()
    return calls


def _created(calls: Calls) -> int:
    return calls.enqueue("q", [1, 2], hold=True)


def _pending(calls: Calls) -> int:
    return calls.enqueue("q", [1, 2])


def _started(calls: Calls) -> int:
    job = _pending(calls)
    calls.claim(job)
    return job


def _retry(calls: Calls) -> int:
    job = _failure(calls)
    calls.do("select pyjobs.retry_job(%s)", job)
    return job


def _canceling(calls: Calls) -> int:
    job = _started(calls)
    calls.do("select pyjobs.cancel_job(%s)", job)
    return job


def _unknown(calls: Calls) -> int:
    job = _started(calls)
    calls.do("select pyjobs.quarantine_job(%s, 'look')", job)
    return job


def _success(calls: Calls) -> int:
    job = _pending(calls)
    calls.finish(job)
    return job


def _failure(calls: Calls) -> int:
    job = _pending(calls)
    calls.finish(job, failed=[0])
    return job


def _revoked(calls: Calls) -> int:
    job = _pending(calls)
    calls.do("select pyjobs.cancel_job(%s)", job)
    return job


MAKE: dict[str, Callable[[Calls], int]] = {
    "CREATED": _created,
    "PENDING": _pending,
    "STARTED": _started,
    "RETRY": _retry,
    "CANCELING": _canceling,
    "UNKNOWN": _unknown,
    "SUCCESS": _success,
    "FAILURE": _failure,
    "REVOKED": _revoked,
}
SAME = "the same"

# What each call answers in each state, in the order of MAKE: a status, or how it is refused. A job
# that is cancelled with a grace and a lease out is CANCELING.
#                     CREATED    PENDING    STARTED      RETRY      CANCELING    UNKNOWN    final
ANSWERS: dict[str, list[str]] = {
    "release_job(%s)": ["PENDING", SAME, SAME, SAME, SAME, SAME, SAME],
    "seal_job(%s)": [SAME, SAME, SAME, SAME, SAME, SAME, SAME],
    "add_items(%s, '[1]')": ["PJ006"] * 7,
    "cancel_job(%s)": ["REVOKED", "REVOKED", "CANCELING", "REVOKED", SAME, "REVOKED", SAME],
    "cancel_job(%s, 'now', '0')": ["REVOKED"] * 6 + [SAME],
    "quarantine_job(%s, 'x')": ["PJ003", "UNKNOWN", "UNKNOWN", "UNKNOWN", *["PJ003"] * 3],
    "resolve_job(%s, 'RETRY', 'x')": ["PJ003"] * 5 + ["RETRY", "PJ003"],
    "resolve_job(%s, 'FAILURE', 'x')": ["PJ003"] * 5 + ["FAILURE", "PJ003"],
    "retry_job(%s)": ["PJ003"] * 6 + ["RETRY"],
    "pause_job(%s)": [SAME] * 6 + ["PJ006"],
    "resume_job(%s)": [SAME] * 6 + ["PJ006"],
    "set_priority(%s, 5)": [SAME] * 6 + ["PJ006"],
    **{f"finalize_job(%s, '{final}')": [final] * 4 + ["PJ003", "PJ003", SAME] for final in FINAL},
    "finalize_job(%s)": [SAME] * 7,
}


@pytest.mark.parametrize("state", MAKE)
def test_each_call_answers_as_the_state_allows(calls: Calls, state: str) -> None:
    """A status, which is then the job's; or a refusal, which has changed nothing."""
    column = min(list(MAKE).index(state), 6)
    for call, answers in ANSWERS.items():
        job = MAKE[state](calls)
        assert calls.status(job) == state
        expected = state if answers[column] == SAME else answers[column]
        result = "status" if call.startswith("finalize") else call.split("(")[0]
        before = calls.row("select * from pyjobs_internal.job where id = %s", job)
        query = f"select {result} from pyjobs.{call}"
        if expected.startswith("PJ"):
            with pytest.raises(psycopg.Error) as raised:
                calls.do(query, job)
            assert raised.value.sqlstate == expected, (state, call)
            assert calls.row("select * from pyjobs_internal.job where id = %s", job) == before
        else:
            assert (call, calls.value(query, job)) == (call, expected)
            assert calls.status(job) == expected
        assert calls.audit(job) == []


def _refused(calls: Calls, query: str, *arguments: Any) -> str | None:
    """The SQLSTATE with which a change is refused; None where it is not, and then it is undone."""
    try:
        with calls.conn.transaction(force_rollback=True):
            calls.do(query, *arguments)
    except psycopg.Error as error:
        return error.sqlstate
    return None


def test_the_guard_allows_what_the_rows_say_and_refuses_the_rest(calls: Calls) -> None:
    """By a plain UPDATE of the table's owner, over all pairs of states."""
    allowed = {
        (row["from_status"], row["to_status"])
        for row in calls.rows("select from_status, to_status from pyjobs_internal.job_transition")
    }
    for state, make in MAKE.items():
        for to in MAKE:
            # STARTED is a mark beside the job and never written: there it says PENDING.
            if to in {state, "STARTED"} or (state, to) == ("STARTED", "PENDING"):
                continue
            job = make(calls)
            final = state in FINAL
            sqlstate = _refused(
                calls,
                "update pyjobs_internal.job set status = %s, run = run + %s,"
                " finished_at = case when %s then now() end,"
                " cancel_deadline = case when %s then now() end where id = %s",
                to,
                int(final),
                to in FINAL,
                to == "CANCELING",
                job,
            )
            went = sqlstate is None
            assert sqlstate in {None, "PJ003"}
            assert (state, to, went) == (state, to, (state, to) in allowed)


@pytest.mark.parametrize("state", FINAL)
@pytest.mark.parametrize(
    "change",
    [
        "update pyjobs_internal.job set status = 'RETRY', finished_at = null where id = %s",
        "update pyjobs_internal.job set finished_at = now() where id = %s",
        "update pyjobs_internal.job set finished_at = null where id = %s",
        "update pyjobs_internal.job set run = run + 1 where id = %s",
        "update pyjobs_internal.job set status = 'FAILURE', run = run + 1 where id = %s",
        "update pyjobs_internal.job set run = run + 2, status = 'RETRY', finished_at = null"
        " where id = %s",
        "update pyjobs_internal.job set run = run + 1, status = 'RETRY', finished_at = null,"
        " created_at = '2000-01-01' where id = %s",
        "update pyjobs_internal.job set priority = 7 where id = %s",
    ],
)
def test_final_is_final_for_the_owner_too(calls: Calls, state: str, change: str) -> None:
    """Nothing but the form that starts the next run is taken."""
    job = MAKE[state](calls)
    with pytest.raises(psycopg.Error) as raised:
        calls.do(change, job)
    assert raised.value.sqlstate == "PJ003"
    assert calls.status(job) == state


@pytest.mark.parametrize("state", ["PENDING", "RETRY"])
@pytest.mark.parametrize("end", ["", ", status = 'SUCCESS', finished_at = now()"])
@pytest.mark.parametrize(
    "change", ["id = id + 1000", "queue = queue || 'x'", "run = run + 1", "created_at = now()"]
)
def test_what_a_job_is_does_not_change(calls: Calls, state: str, end: str, change: str) -> None:
    """Not even in the update that ends it, for which alone the guard need not be called."""
    job = MAKE[state](calls)
    assert (
        _refused(calls, f"update pyjobs_internal.job set {change}{end} where id = %s", job)
        == "PJ003"
    )
    assert _refused(calls, "update pyjobs_internal.job set priority = 7 where id = %s", job) is None


def test_only_a_final_job_is_deleted(calls: Calls) -> None:
    """And a job does not begin in the middle."""
    for state, make in MAKE.items():
        refused = _refused(calls, "delete from pyjobs_internal.job where id = %s", make(calls))
        assert (state, refused) == (state, None if state in FINAL else "PJ003")
    with pytest.raises(psycopg.Error, match="cannot begin") as raised:
        calls.do(
            "insert into pyjobs_internal.job (run_at, created_at, run_since, priority, batch_size,"
            " max_attempts, status, held, sealed, failure_threshold, queue, params, created_by,"
            " finished_at) values (now(), now(), now(), 0, 1, 1, 'SUCCESS', false, true, 0.5, 'q',"
            " '{}', 'me', now())"
        )
    assert raised.value.sqlstate == "PJ003"


# Completion


@pytest.mark.parametrize(
    ("threshold", "failed", "status"),
    [
        (0.5, 2, "SUCCESS"),  # exactly at it
        (0.5, 3, "FAILURE"),
        (0, 0, "SUCCESS"),
        (0, 1, "FAILURE"),
        (1, 4, "SUCCESS"),
        (0.25, 1, "SUCCESS"),
        (0.25, 2, "FAILURE"),
    ],
)
def test_a_job_fails_by_its_threshold(
    calls: Calls, threshold: float, failed: int, status: str
) -> None:
    """More than that share of a stage's items."""
    job = calls.enqueue("q", 4, batch_size=4, failure_threshold=threshold)
    calls.finish(job, failed=range(failed))
    assert calls.status(job) == status


def test_any_stage_decides(calls: Calls) -> None:
    """One bad stage of three makes a failure, though most items of the job are good."""
    job = calls.enqueue("q", 6, batch_size=6, stages=["a", "b", "c"])
    calls.record(calls.claim(job)[0], next_items=[1, 2, 3])
    calls.record(calls.claim(job)[0], failed=[0, 1], next_items=[1])
    calls.record(calls.claim(job)[0])
    assert calls.status(job) == "FAILURE"
    assert "stage b" in calls.value("select reason from pyjobs.job where id = %s", job)


def test_stages_take_what_is_emitted_and_a_barrier_waits_for_all_before(calls: Calls) -> None:
    """b is worked while a still runs; c only when both are complete."""
    job = calls.enqueue("q", 2, stages=["a", "b", "c"], barriers=["c"])
    first, second = calls.claim(job, 2)
    calls.record(first, next_items=["x", "y"])
    in_b = calls.claim(job, 9)
    assert [(b["stage"], b["items"]) for b in in_b] == [("b", ["x"]), ("b", ["y"])]
    assert calls.record(in_b[0], next_items=["z"])["stage_done"] is False
    calls.record(in_b[1])
    assert calls.claim(job) == []
    done = calls.record(second)
    assert (done["stage_done"], done["job_done"]) == (True, False)
    (in_c,) = calls.claim(job)
    assert (in_c["stage"], in_c["items"]) == ("c", ["z"])
    assert calls.record(in_c)["job_status"] == "SUCCESS"
    assert [s["status"] for s in calls.progress(job)["stages"]] == ["done"] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 12])
def test_items_are_cut_into_batches_in_order_and_none_twice(
    calls: Calls, count: int, size: int
) -> None:
    """Broken by hand, each seen red: one item too many a batch, a batch too few."""
    kinds = [None, [], [[1], 2], {"a": [None]}, "x", 2.5, True, [None]]
    items = [kinds[n % len(kinds)] for n in range(count)]
    wanted = [items[n : n + size] for n in range(0, count, size)]
    job = calls.enqueue("q", items, batch_size=size, seal=False)
    assert calls.value("select pyjobs.add_items(%s, %s::jsonb)", job, json.dumps(items))
    rows = calls.rows("select * from pyjobs.batch where job_id = %s order by id", job)
    assert [row["items"] for row in rows] == wanted * 2
    assert [row["item_count"] for row in rows] == [len(each) for each in wanted] * 2
    served = calls.claim(job, 100)
    assert [batch["items"] for batch in served] == wanted * 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "n", "priority": 7, "batch_size": 9, "max_attempts": 2, "failure_threshold": 0.25},
        {"run_at": "2100-01-01"},
        {"seal": False},
        {"hold": True},
        {"dedupe_key": "k"},
        {"stages": ["one"]},
        {"stages": ["process", "results"]},
        {"barriers": ["process"]},
        {"params": {"a": "x" * 40_000}},
    ],
)
def test_a_plain_job_is_made_as_one_whose_item_is_given(
    calls: Calls, options: dict[str, Any]
) -> None:
    """Without items and with little else it is made by a shorter way."""
    options = {"params": {"p": [1]}, "run_at": "2000-01-01", **options}
    differ = ["id", "job_id", "pos", "queue", "items", "created_at", "run_since"]
    if options["run_at"] < "2100":
        differ.append("due_at")
    rows = [
        {
            table: calls.value(
                f"select jsonb_agg(to_jsonb(t) - %s::text[] order by to_jsonb(t) ->> 'no')"
                f" from pyjobs_internal.{table} t where {key} = %s",
                differ,
                job,
            )
            for table, key in [
                ("job", "id"), ("stage", "job_id"), ("batch", "job_id"), ("offer", "job_id"),
            ]
        }
        for job in (
            calls.enqueue("q", **options),
            calls.enqueue("other", [options["params"]], **options),
        )
    ]  # fmt: skip
    assert rows[0]["batch"]
    assert rows[0] == rows[1]
    again = calls.enqueue("q", **options)
    assert len(calls.rows("select from pyjobs.job where queue = 'q'")) == (
        1 if "dedupe_key" in options else 2
    ), again


def test_an_empty_job_succeeds_at_once_unless_it_is_held_or_not_sealed(calls: Calls) -> None:
    """Also one for later."""
    assert calls.status(calls.enqueue("q", [])) == "SUCCESS"
    later = calls.value("select now() + interval '1 day'")
    assert calls.status(calls.enqueue("q", [], run_at=later)) == "SUCCESS"
    held = calls.enqueue("q", [], hold=True)
    assert calls.status(held) == "CREATED"
    assert calls.value("select pyjobs.release_job(%s)", held) == "SUCCESS"
    unsealed = calls.enqueue("q", [], seal=False)
    assert calls.status(unsealed) == "PENDING"
    assert calls.value("select pyjobs.seal_job(%s)", unsealed) == "SUCCESS"


def test_an_unsealed_job_does_not_complete_and_the_seal_ends_it(calls: Calls) -> None:
    """With everything recorded it waits for more."""
    job = calls.enqueue("q", 1, seal=False)
    calls.finish(job)
    assert calls.status(job) == "STARTED"
    calls.do("select pyjobs.add_items(%s, '[7]')", job)
    calls.finish(job)
    assert calls.value("select pyjobs.seal_job(%s)", job) == "SUCCESS"
    assert calls.progress(job)["stages"][0]["total"] == 2


def test_finalize_ends_a_job_once(calls: Calls) -> None:
    """The first call transitions, the next one tells."""
    job = _started(calls)
    (batch,) = calls.claim(job)
    first = calls.row("select * from pyjobs.finalize_job(%s, 'SUCCESS', 'by hand')", job)
    again = calls.row("select * from pyjobs.finalize_job(%s, 'FAILURE')", job)
    assert first == {"transitioned": True, "status": "SUCCESS"}
    assert again == {"transitioned": False, "status": "SUCCESS"}
    with pytest.raises(psycopg.Error) as raised:
        calls.record(batch)
    assert raised.value.sqlstate == "PJ001"


# Cancel, quarantine


def test_within_its_grace_a_cancelled_job_takes_results_and_ends_with_the_last(
    calls: Calls,
) -> None:
    """The end is REVOKED, whatever was recorded."""
    job = _pending(calls)
    first, second = calls.claim(job, 2)
    assert calls.value("select pyjobs.cancel_job(%s, 'enough')", job) == "CANCELING"
    assert calls.claim(job) == []
    assert calls.record(first)["job_status"] == "CANCELING"
    assert calls.record(second)["job_status"] == "REVOKED"
    assert calls.progress(job)["stages"][0]["processed"] == 2


def test_of_two_cancels_the_earlier_deadline_holds(calls: Calls) -> None:
    """A later, longer grace does not prolong it; a shorter one hurries it."""
    job = _canceling(calls)
    deadline = "select cancel_deadline from pyjobs.job where id = %s"
    first = calls.value(deadline, job)
    calls.do("select pyjobs.cancel_job(%s, null, '1 hour')", job)
    assert calls.value(deadline, job) == first
    calls.do("select pyjobs.cancel_job(%s, null, '1 second')", job)
    assert calls.value(deadline, job) < first
    assert calls.value("select pyjobs.cancel_job(%s, null, '0')", job) == "REVOKED"


def test_past_its_grace_the_reaper_fences_and_ends_it(calls: Calls) -> None:
    """The late result is refused, and classed as normal."""
    job = _pending(calls)
    (batch,) = calls.claim(job, lease="1 hour")
    calls.do("select pyjobs.cancel_job(%s)", job)
    assert calls.rows("select * from pyjobs.reap()") == []
    calls.pass_time("31 seconds")
    assert [r["action"] for r in calls.rows("select * from pyjobs.reap_leases()")] == ["revoked"]
    with pytest.raises(psycopg.Error) as raised:
        calls.record(batch)
    assert raised.value.sqlstate == "PJ001"
    calls.do("select pyjobs.report_refused(%s, 1, 'PJ001')", batch["batch_id"])
    assert calls.value("select class from pyjobs.refused") == "normal"


def test_a_job_set_aside_goes_on_with_the_same_run_when_it_is_resolved(calls: Calls) -> None:
    """Its leases were fenced, no attempt was spent, and STARTED is earned anew."""
    job = _pending(calls)
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.quarantine_job(%s, 'look')", job)
    assert calls.claim(job) == []
    with pytest.raises(psycopg.Error) as raised:
        calls.record(batch)
    assert raised.value.sqlstate == "PJ001"
    assert calls.value("select pyjobs.resolve_job(%s, 'RETRY', 'fine')", job) == "RETRY"
    again = calls.claim(job, 2)
    assert {(b["run"], b["attempt"]) for b in again} == {(1, 1)}
    assert calls.status(job) == "STARTED"
    for each in again:
        calls.record(each)
    assert calls.steps(job)[-3:] == [
        ("UNKNOWN", "RETRY"),
        ("RETRY", "STARTED"),
        ("STARTED", "SUCCESS"),
    ]


# Runs


def test_a_retry_repeats_what_producers_gave_and_not_what_was_emitted(calls: Calls) -> None:
    """The first stage's items, and those that a producer gave to a later stage."""
    job = calls.enqueue("q", 2, stages=["a", "b"], barriers=["b"], seal=False)
    calls.do("select pyjobs.add_items(%s, '[\"sum\"]', 'b')", job)
    calls.do("select pyjobs.seal_job(%s)", job)
    for batch in calls.claim(job, 2):
        calls.record(batch, next_items=["emitted"])
    calls.finish(job)
    assert calls.value("select pyjobs.retry_job(%s)", job) == "RETRY"
    totals = [s["total"] for s in calls.progress(job)["stages"]]
    assert totals == [2, 1]
    assert calls.claim(job, 9, worker="again")[0]["run"] == 2


def test_a_retry_of_the_failed_takes_each_item_in_its_own_stage(calls: Calls) -> None:
    """Failed ones of a batch, those of a batch given up, and those never finished."""
    job = calls.enqueue(
        "q", ["a", "b", "c", "d", "e", "f"], batch_size=2, stages=["one", "two"], max_attempts=1
    )
    first, second, _ = calls.claim(job, 3)
    calls.record(first, failed=[1], counters={"seen": 2}, next_items=["x"])
    calls.do("select pyjobs.release_batch(%s, 1, 'broken')", second["batch_id"])
    (in_two,) = calls.claim(job)
    calls.record(in_two, failed=[0])
    calls.do("select pyjobs.cancel_job(%s, null, '0')", job)
    assert calls.value("select pyjobs.retry_job(%s, true)", job) == "RETRY"
    again = {(b["stage"], *b["items"]) for b in calls.claim(job, 9)}
    assert again == {("one", "b"), ("one", "c", "d"), ("one", "e", "f"), ("two", "x")}
    one, two = calls.progress(job)["stages"]
    assert (one["total"], two["total"]) == (5, 1)
    assert one["carried"] == {"succeeded": 1, "counters": {"seen": 2}}
    assert calls.audit(job) == []


def test_a_second_retry_of_the_failed_carries_on_and_a_full_one_begins_anew(calls: Calls) -> None:
    """Three runs: 4 items, then 2, then 1; the full one has all four again."""
    job = calls.enqueue("q", 4, batch_size=4, failure_threshold=0)
    calls.finish(job, failed=[0, 1])
    calls.do("select pyjobs.retry_job(%s, true)", job)
    calls.finish(job, failed=[1])
    calls.do("select pyjobs.retry_job(%s, true)", job)
    (stage,) = calls.progress(job)["stages"]
    assert (stage["total"], stage["carried"]["succeeded"]) == (1, 3)
    calls.finish(job)
    assert calls.status(job) == "SUCCESS"
    with pytest.raises(psycopg.Error, match="no items that failed") as raised:
        calls.do("select pyjobs.retry_job(%s, true)", job)
    assert raised.value.sqlstate == "PJ006"
    assert calls.status(job) == "SUCCESS"
    calls.do("select pyjobs.retry_job(%s)", job)
    (stage,) = calls.progress(job)["stages"]
    assert stage["total"] == 4
    assert calls.audit(job) == []


def test_a_retry_that_meets_its_dedupe_key_is_refused(calls: Calls) -> None:
    """Another live job has the key by now."""
    job = calls.enqueue("q", dedupe_key="k")
    calls.finish(job)
    calls.enqueue("q", dedupe_key="k")
    with pytest.raises(psycopg.Error, match="dedupe key") as raised:
        calls.do("select pyjobs.retry_job(%s)", job)
    assert raised.value.sqlstate == "PJ006"
    assert calls.status(job) == "SUCCESS"


def test_a_late_result_of_an_earlier_run_reaches_nothing(calls: Calls) -> None:
    """It is refused by its own row; the new run's counts stand."""
    job = _pending(calls)
    (old,) = calls.claim(job)
    calls.do("select pyjobs.cancel_job(%s, null, '0')", job)
    calls.do("select pyjobs.retry_job(%s)", job)
    with pytest.raises(psycopg.Error) as raised:
        calls.record(old, counters={"n": 1})
    assert raised.value.sqlstate == "PJ001"
    calls.do("select pyjobs.report_refused(%s, 1, 'PJ001')", old["batch_id"])
    assert calls.value("select class from pyjobs.refused") == "normal"
    (stage,) = calls.progress(job)["stages"]
    assert (stage["pending"], stage["processed"], stage["counters"]) == (2, 0, {})


def test_the_history_says_who_ended_each_run_and_why(calls: Calls) -> None:
    """One end a run."""
    job = _failure(calls)
    calls.do("select pyjobs.retry_job(%s)", job)
    calls.do("select pyjobs.cancel_job(%s, 'enough')", job)
    ends = [row for row in calls.history(job) if row["to_status"] in FINAL]
    assert [(row["run"], row["to_status"], row["by"]) for row in ends] == [
        (1, "FAILURE", "w"),
        (2, "REVOKED", "cancel_job"),
    ]
    assert "threshold" in ends[0]["reason"]
    assert ends[1]["reason"] == "enough"
    assert {row["session_role"] for row in ends} == {calls.value("select session_user::text")}


# The reaper's last resort


def _stale(calls: Calls, **options: Any) -> int:
    """A job that nobody works: one batch done, one that no claim is offered, workers ask."""
    job = calls.enqueue("q", 2, stages=["a", "b"], **options)
    calls.record(calls.claim(job)[0])
    calls.do("delete from pyjobs_internal.offer where job_id = %s", job)
    calls.pass_time("2 hours")
    assert calls.ask("idle", "q") == []
    return job


REAP = "select action, job_id from pyjobs.reap('1 hour')"


def test_a_job_that_nobody_works_although_workers_ask_is_revoked(calls: Calls) -> None:
    """Only where it is asked for; a dry run says the same and changes nothing."""
    job = _stale(calls)
    assert calls.rows("select * from pyjobs.reap()") == []
    found = [{"action": "revoked", "job_id": job}]
    dry = "select action, job_id from pyjobs.reap('1 hour', dry_run => true)"
    assert calls.rows(dry) == found
    assert calls.status(job) == "STARTED"
    assert calls.rows(REAP) == found
    assert calls.status(job) == "REVOKED"
    assert "stale" in calls.value("select reason from pyjobs.job where id = %s", job)


@pytest.mark.parametrize(
    "but",
    [
        "select pyjobs.pause_job(%s)",
        "select pyjobs.pause_queue(queue) from pyjobs.job where id = %s",
        "update pyjobs_internal.job set sealed = false where id = %s",
        "update pyjobs_internal.job set run_at = now() + interval '1 day' where id = %s",
        "select from pyjobs.claim_next_batch(%s, 'w', lease => '1 day')",
        "update pyjobs_internal.batch set due_at = now() + interval '1 day'"
        " where state = 'pending' and job_id = %s",
        "update pyjobs_internal.worker set last_empty_at = null where %s > 0",
        "update pyjobs_internal.worker set queues = '{other}' where %s > 0",
        "update pyjobs_internal.batch set returned_at = pyjobs_internal.clock() where job_id = %s",
        "update pyjobs_internal.batch set leased_at = pyjobs_internal.clock() where job_id = %s",
        "update pyjobs_internal.batch set closed_at = pyjobs_internal.clock()"
        " where closed_at is not null and job_id = %s",
    ],
)
def test_a_job_is_not_stale_while_there_is_a_reason(calls: Calls, but: str) -> None:
    """Each of them alone spares it."""
    job = _stale(calls)
    calls.do(but, job)
    assert calls.rows(REAP) == []
    assert calls.status(job) == "STARTED"


def test_a_job_with_a_lease_out_is_not_stale_however_long_it_takes(calls: Calls) -> None:
    """Its worker extends it for hours, and others go away empty."""
    job = calls.enqueue("q", 1)
    calls.claim(job, lease="1 day")
    calls.pass_time("2 hours")
    assert calls.ask("idle", "q") == []
    assert calls.rows(REAP) == []
    assert calls.status(job) == "STARTED"


def test_a_backlog_is_not_stale(calls: Calls) -> None:
    """Nobody asked and went away empty: the job waits its turn."""
    job = calls.enqueue("q", 2)
    calls.record(calls.claim(job)[0])
    calls.pass_time("2 hours")
    assert calls.rows(REAP) == []


def test_what_was_set_aside_and_forgotten_ends_after_seven_days(calls: Calls) -> None:
    """Only with stale_after, and not before."""
    job = _unknown(calls)
    calls.pass_time("6 days 23 hours")
    assert calls.rows(REAP) == []
    calls.pass_time("2 hours")
    assert calls.rows("select * from pyjobs.reap()") == []
    assert calls.rows(REAP) == [{"action": "revoked", "job_id": job}]


def test_lost_items_fail_before_the_job_could_be_revoked(calls: Calls) -> None:
    """The good work is kept: the job ends by its threshold."""
    job = calls.enqueue("q", 3, max_attempts=1)
    for batch in calls.claim(job, 3)[:2]:
        calls.record(batch)
    calls.pass_time("2 minutes")
    actions = [row["action"] for row in calls.rows("select * from pyjobs.reap('1 minute')")]
    assert actions == ["failed"]
    assert calls.status(job) == "SUCCESS"
    document = calls.progress(job)
    assert document["stages"][0]["failed"] == 1
    assert "expired" in document["errors"][0]["error"]


def test_whatever_a_claimable_state_allows_started_allows_too(db):
    """The guard on the job's row goes by it: it does not look whether such a job was claimed."""
    more = db.execute(
        "select t.from_status::text, t.to_status::text from pyjobs_internal.job_transition t"
        " where t.from_status in ('PENDING', 'RETRY') and t.to_status <> 'STARTED'"
        " and not exists (select from pyjobs_internal.job_transition s"
        " where s.from_status = 'STARTED' and s.to_status = t.to_status)"
    ).fetchall()
    assert more == []
