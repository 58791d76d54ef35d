"""audit_job: silent where all agrees, at any moment; and it finds each kind of disagreement."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

from tests.support.calls import Calls


@pytest.fixture
def calls(db):
    return Calls(db)


@pytest.fixture
def corrupt(calls):
    """Change rows as no function would: without the guard and the checks of the tables."""
    calls.do("alter table pyjobs_internal.job disable trigger user")
    for table in ("job", "batch", "stage"):
        for (name,) in calls.conn.execute(
            "select conname from pg_constraint where contype = 'c' and conrelid = %s::regclass",
            [f"pyjobs_internal.{table}"],
        ).fetchall():
            calls.do(f"alter table pyjobs_internal.{table} drop constraint {name}")
    return calls.do


def done_job(calls, **options):
    """Three stages' worth of results: counters, failures, emitted items."""
    job = calls.enqueue(items=6, batch_size=2, stages=["one", "two"], barriers=["two"], **options)
    for batch in calls.claim(job, 3):
        calls.record(batch, failed=[1], counters={"stars": 3}, next_items=[1, 2])
    calls.finish(job, counters={"planets": 1})
    return job


def whats(calls, job):
    return {(row["stage"], row["what"]) for row in calls.audit(job)}


def test_every_state_that_functions_can_make_agrees(calls):
    calls.enqueue(hold=True)
    calls.enqueue(items=[])
    calls.enqueue(items=[], seal=False)
    calls.enqueue(run_at="2099-01-01")
    calls.enqueue(items=5, stages=["a", "b", "c"], barriers=["c"])
    started = calls.enqueue(items=5)
    calls.record(calls.claim(started, 2)[0], failed=[0])
    cancelling = calls.enqueue(items=5)
    calls.claim(cancelling)
    calls.do("select pyjobs.cancel_job(%s, null, '1 hour')", cancelling)
    revoked = calls.enqueue(items=5)
    calls.claim(revoked)
    calls.do("select pyjobs.cancel_job(%s, null, '0')", revoked)
    quarantined = calls.enqueue(items=5)
    calls.record(calls.claim(quarantined, 2)[0])
    calls.do("select pyjobs.quarantine_job(%s, 'why')", quarantined)
    resolved = calls.enqueue(items=5)
    calls.claim(resolved)
    calls.do("select pyjobs.quarantine_job(%s, 'why')", resolved)
    calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'why')", resolved)
    ended = calls.enqueue(items=5)
    calls.do("select pyjobs.quarantine_job(%s, 'why')", ended)
    calls.do("select pyjobs.resolve_job(%s, 'FAILURE', 'why')", ended)
    for status in ("SUCCESS", "FAILURE", "REVOKED"):
        forced = calls.enqueue(items=5)
        calls.claim(forced)
        calls.do("select pyjobs.finalize_job(%s, %s)", forced, status)
    failed = calls.enqueue(items=4, failure_threshold=0)
    calls.finish(failed, failed=[0])
    again = done_job(calls)
    calls.do("select pyjobs.retry_job(%s)", again)
    some = done_job(calls)
    calls.do("select pyjobs.retry_job(%s, true)", some)
    calls.finish(some, failed=[0], counters={"stars": 1})
    calls.do("select pyjobs.retry_job(%s, true)", some)
    paused = calls.enqueue(items=3)
    calls.do("select pyjobs.pause_job(%s)", paused)
    lost = calls.enqueue(items=3, max_attempts=1)
    for batch in calls.claim(lost, 2):
        calls.do(
            "select pyjobs.release_batch(%s, %s, 'why')", batch["batch_id"], batch["lease_epoch"]
        )
    statuses = {row["status"] for row in calls.rows("select status from pyjobs.job")}
    assert statuses == {
        "CREATED", "PENDING", "STARTED", "RETRY", "CANCELING", "UNKNOWN",
        "SUCCESS", "FAILURE", "REVOKED",
    }  # fmt: skip
    assert calls.audit() == []


OF_A_FINISHED_JOB = [
    ("stage set total = total + 1 where no = 1", {("one", "total")}),
    ("stage set succeeded = 0 where no = 1", {("one", "succeeded")}),
    ("stage set failed = 0 where no = 1", {("one", "failed")}),
    ("stage set counters = '{\"stars\": 8}' where no = 1", {("one", "counter stars")}),
    ("stage set counters = '{}' where no = 1", {("one", "counter stars")}),
    (
        "stage set counters = counters || '{\"moons\": 1}' where no = 2",
        {("two", "counter moons")},
    ),
    ("stage set done = false where no = 1", {("two", "done"), (None, "status")}),
    ("stage set open = false where no = 2", {("two", "open")}),
    ("stage set carried_succeeded = 1 where no = 2", {("two", "carried succeeded")}),
    (
        "stage set carried_counters = '{\"stars\": 1}' where no = 2",
        {("two", "carried counters")},
    ),
    ("job set sealed = false", {("one", "done"), ("two", "done")}),
    ("job set failure_threshold = 0.1", {(None, "status")}),
    ("job set status = 'FAILURE'", {(None, "status")}),
    (
        "job set finished_at = null",
        {(None, "finished_at"), (None, "status"), (None, "ends of run 1")},
    ),
    ("job set finished_from = 'UNKNOWN'", {(None, "history, step 2")}),
    ("job set era = 2", {(None, "era")}),
    ("job_start set run = 2", {(None, "first claim"), (None, "history, step 2")}),
    ("job set status = 'PENDING', finished_at = null", {(None, "status")}),
    ("job set status = 'PENDING'", {(None, "finished_at"), (None, "history, step 3")}),
]


def test_what_is_kept_about_a_finished_job_is_checked(calls, corrupt):
    other = done_job(calls)
    job = done_job(calls)
    assert calls.audit() == []
    for change, found in OF_A_FINISHED_JOB:
        with calls.conn.transaction(force_rollback=True):
            table, rest = change.split(" ", 1)
            column = "id" if table == "job" else "job_id"
            rest += f" {'and' if 'where' in rest else 'where'} {column} = {job}"
            corrupt(f"update pyjobs_internal.{table} {rest}")
            said = whats(calls, job)
            assert said >= found, change
            # Nothing but what was touched, and what follows from it.
            assert {what for _, what in said - found} <= {"status", "ends of run 1"}, change
            assert calls.audit(other) == []
            assert {row["job_id"] for row in calls.audit()} == {job}


OF_A_BATCH = [
    ("item_count = 3", "item_count"),
    ("failed_count = 2", "failed_count"),
    ("failed_count = 0, failed = null", None),
    ('failed = \'[{"index": 2, "error": ""}]\'', "failed"),
    ('failed = \'[{"index": -1, "error": ""}]\'', "failed"),
    ('failed = \'[{"index": "x", "error": ""}]\'', "failed"),
    ("failed = '{}'", "failed_count"),
    ('failed = \'[{"index": 1}, {"index": 1}]\', failed_count = 2', "failed"),
    ("counters = '{\"stars\": -1}'", "counters"),
    ("counters = '{\"stars\": 1.5}'", "counters"),
    ("counters = '[]'", "counters"),
    ("attempt = 0", "attempt"),
    ("attempt = 4", "attempt"),
    ("lease_epoch = 0", "lease_epoch"),
    ("stage = 3", "stage"),
    ("run = 2", "run"),
    ("items = '7'", "item_count"),
]


def test_each_batch_is_checked_against_what_it_lists(calls, corrupt):
    job = done_job(calls)
    batch = calls.value("select min(id) from pyjobs.batch where job_id = %s", job)
    assert calls.audit() == []
    for change, what in OF_A_BATCH:
        with calls.conn.transaction(force_rollback=True):
            corrupt(f"update pyjobs_internal.batch set {change} where id = {batch}")
            said = {name for _, name in whats(calls, job)}
            if what:
                assert f"{what} of batch {batch}" in said, change
            else:
                assert said == {"failed", "succeeded"}, "the stage's totals notice"
            assert {row["job_id"] for row in calls.audit()} == {job}


OF_A_JOB_UNDER_WAY = [
    ("update pyjobs_internal.stage set open = false where no = 1", ("one", "open")),
    (
        "update pyjobs_internal.batch set state = 'failed', failed_count = item_count,"
        " closed_at = now(), lease_epoch = 1, attempt = 1, lease_expires_at = null"
        " where state in ('pending', 'leased')",
        ("one", "done"),
    ),
    (
        "delete from pyjobs_internal.job_start",
        ("one", "leases nobody has claimed"),
    ),
    (
        "update pyjobs_internal.job set status = 'UNKNOWN'",
        ("one", "leases of a job set aside"),
    ),
    ("update pyjobs_internal.job set status = 'UNKNOWN'", (None, "status")),
    (
        "update pyjobs_internal.job set status = 'REVOKED', finished_at = now(),"
        " finished_from = 'STARTED'",
        ("one", "leases of an ended run"),
    ),
    (
        "update pyjobs_internal.job set status = 'SUCCESS', finished_at = now(),"
        " finished_from = 'STARTED', finished_by = 'w'",
        (None, "status"),
    ),
    ("update pyjobs_internal.job set run = 0", ("one", "stage in run 1")),
    (
        "insert into pyjobs_internal.stage (job_id, run, no, barrier, open, key)"
        " select job_id, 2, no, barrier, open, key from pyjobs_internal.stage",
        ("one", "stage in run 2"),
    ),
    ("delete from pyjobs_internal.stage where no = 1", (None, "stages")),
    ("delete from pyjobs_internal.stage", (None, "stages")),
    ("delete from pyjobs_internal.offer", ("one", "offer")),
    ("update pyjobs_internal.offer set due_at = now() + interval '1 h'", ("one", "offer")),
    (
        "insert into pyjobs_internal.history"
        " (job_id, at, run, from_status, to_status, session_role, by)"
        " select id, now(), 1, 'STARTED', 'UNKNOWN', '', '' from pyjobs_internal.job",
        (None, "status"),
    ),
    (
        "insert into pyjobs_internal.history"
        " (job_id, at, run, from_status, to_status, session_role, by)"
        " select id, now(), 2, 'STARTED', 'UNKNOWN', '', '' from pyjobs_internal.job",
        (None, "run in the history"),
    ),
    (
        "insert into pyjobs_internal.history"
        " (job_id, at, run, from_status, to_status, session_role, by)"
        " select id, now(), 1, 'CANCELING', 'STARTED', '', '' from pyjobs_internal.job",
        (None, "history, step 2"),
    ),
]


def test_a_job_that_is_under_way_is_checked(calls, corrupt):
    job = calls.enqueue(items=6, batch_size=2, stages=["one", "two"], barriers=["two"])
    first, _second = calls.claim(job, 2)
    calls.record(first, next_items=[1])
    assert calls.audit() == []
    for change, found in OF_A_JOB_UNDER_WAY:
        with calls.conn.transaction(force_rollback=True):
            corrupt(change)
            assert found in whats(calls, job), change


def test_rows_of_no_job_are_found(calls, corrupt):
    calls.mark_every_claim()
    job = calls.enqueue(items=6, hold=True)
    calls.do("select pyjobs.release_job(%s)", job)
    calls.claim(job)
    other = calls.enqueue(items=6)
    assert calls.audit() == []
    corrupt("delete from pyjobs_internal.job where id = %s", job)
    tables = {
        "batch": "batches of no job",
        "stage": "stages of no job",
        "job_start": "first claims of no job",
        "claim_mark": "marks of no job",
        "history": "history of no job",
        "offer": "offers of no job",
    }
    for table, what in tables.items():
        assert {(row["job_id"], row["what"]) for row in calls.audit()} >= {(job, what)}
        calls.do(f"delete from pyjobs_internal.{table} where job_id = {job}")
        assert what not in {row["what"] for row in calls.audit()}
    assert calls.audit() == []
    assert calls.audit(other) == []


def test_a_later_run_does_not_hide_what_is_wrong_in_an_earlier_one(calls, corrupt):
    job = done_job(calls)
    calls.do("select pyjobs.retry_job(%s)", job)
    corrupt("update pyjobs_internal.stage set failed = 0 where run = 1 and no = 1")
    (row,) = calls.audit(job)
    assert row == {
        "job_id": job,
        "stage": "one",
        "what": "failed in run 1",
        "recorded": "0",
        "recomputed": "3",
    }


def test_the_end_of_each_run_is_told_once(calls, corrupt):
    job = done_job(calls)
    calls.do("select pyjobs.retry_job(%s)", job)
    assert calls.audit() == []
    corrupt(
        "delete from pyjobs_internal.history where to_status in ('SUCCESS', 'FAILURE', 'REVOKED')"
    )
    assert (None, "ends of run 1") in whats(calls, job)


def test_an_end_by_an_operators_decision_need_not_follow_the_ledger(calls):
    job = calls.enqueue(items=2)
    calls.record(calls.claim(job)[0], failed=[0])
    calls.do("select pyjobs.finalize_job(%s, 'SUCCESS', 'good enough')", job)
    assert calls.audit(job) == []


def test_it_raises_no_false_alarm_while_everything_moves(connect):
    """Random producers, workers and operators; an auditor in a loop, of one job and of all."""
    stop = threading.Event()
    alarms: list[object] = []
    rounds = 0
    ids: list[int] = []
    refused = {"PJ001", "PJ002", "PJ003", "PJ004", "PJ005", "PJ006", "40P01", "55P03"}

    def work(number: int) -> None:
        chance = random.Random(number)
        session = Calls(connect())
        held: list[dict[str, object]] = []
        while not stop.is_set():
            try:
                if number == 0:
                    _operate(session, chance, ids)
                    continue
                if not held:
                    held = session.ask(f"w{number}", "default")
                    job = held[0]["job_id"] if held else None
                    if job and chance.random() < 0.5:
                        held += session.claim(job, chance.randint(1, 4), worker=f"w{number}")
                if held:
                    _work(session, chance, held.pop())
            except psycopg.Error as error:
                if error.sqlstate not in refused:
                    alarms.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    auditor = Calls(connect())
    try:
        while (rounds < 25 or len(ids) < 20) and not alarms:
            rounds += 1
            alarms += auditor.audit()
            for job in ids[-3:]:
                alarms += auditor.audit(job)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert alarms == []
    assert auditor.audit() == []


def _operate(session, chance, ids):
    if len(ids) < 100 and (not ids or chance.random() < 0.2):
        ids.append(
            session.enqueue(
                items=chance.randint(0, 6),
                batch_size=chance.randint(1, 2),
                stages=["a", "b"],
                barriers=chance.choice([[], ["b"]]),
                hold=chance.random() < 0.2,
                seal=chance.random() < 0.7,
                failure_threshold=chance.choice([0, 0.5]),
                max_attempts=chance.randint(1, 2),
            )
        )
        return
    job = chance.choice(ids[-8:])
    session.do(
        chance.choice(
            [
                f"select pyjobs.release_job({job})",
                f"select pyjobs.seal_job({job})",
                f"select pyjobs.add_items({job}, '[1, 2]')",
                f"select pyjobs.cancel_job({job}, null, '{chance.choice([0, 10])}')",
                f"select pyjobs.finalize_job({job})",
                f"select pyjobs.finalize_job({job}, '{chance.choice(['SUCCESS', 'FAILURE'])}')",
                f"select pyjobs.retry_job({job}, {chance.choice(['true', 'false'])})",
                f"select pyjobs.quarantine_job({job}, 'why')",
                f"select pyjobs.resolve_job({job}, 'RETRY', 'why')",
                f"select pyjobs.pause_job({job})",
                f"select pyjobs.resume_job({job})",
                f"select pyjobs.set_priority({job}, {chance.randint(0, 3)})",
                "select pyjobs.reap()",
            ]
        )
    )


def _work(session, chance, batch):
    move = chance.random()
    if move < 0.1:
        session.do(
            "select pyjobs.release_batch(%s, %s, %s)",
            batch["batch_id"],
            batch["lease_epoch"],
            chance.choice([None, "why"]),
        )
    elif move < 0.2:
        session.do(
            "select pyjobs.extend_lease(%s, %s, '1 millisecond')",
            batch["batch_id"],
            batch["lease_epoch"],
        )
    else:
        session.record(
            batch,
            failed=chance.choice([[], [0]]),
            counters={"n": chance.randint(0, 3)},
            next_items=[1, 2] if batch["stage"] == "a" and move > 0.6 else None,
        )
