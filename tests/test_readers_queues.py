"""queue_stats, active_workers and purge_jobs."""

from __future__ import annotations

import datetime as dt

import psycopg
import pytest

from tests.support.calls import Calls


@pytest.fixture
def calls(db):
    return Calls(db)


def queues(calls):
    return {row["queue"]: row for row in calls.rows("select * from pyjobs.queue_stats()")}


def workers(calls):
    return {row["worker"]: row for row in calls.rows("select * from pyjobs.active_workers()")}


def test_nothing_is_listed_where_nothing_is(calls):
    assert queues(calls) == {}
    assert workers(calls) == {}


def test_a_queue_counts_its_jobs_and_batches(calls):
    calls.enqueue("q", items=3)
    calls.enqueue("q", items=4)
    calls.enqueue("q", hold=True)
    set_aside = calls.enqueue("q", items=2)
    calls.do("select pyjobs.quarantine_job(%s, 'why')", set_aside)
    done = calls.enqueue("q")
    calls.finish(done)
    stopped = calls.enqueue("q", items=5)
    calls.do("select pyjobs.cancel_job(%s)", stopped)
    (batch,) = calls.ask("ada", "q")
    oldest = calls.value(
        "select min(created_at) from pyjobs.job where queue = 'q' and status = 'PENDING'"
    )
    assert queues(calls)["q"] == {
        "queue": "q",
        "paused": False,
        "waiting_jobs": 1,
        "running_jobs": 1,
        "pending_batches": 2 + 4 + 1 + 2,
        "leased_batches": 1,
        "oldest_waiting": oldest,
        "workers": 1,
    }
    calls.do("select pyjobs.cancel_job(%s, null, '1 hour')", batch["job_id"])
    row = queues(calls)["q"]
    assert (row["running_jobs"], row["leased_batches"]) == (1, 1)


def test_a_worker_is_noted_at_once_where_it_asks_for_other_queues_or_goes_away_empty(calls):
    """Else once in a few seconds."""
    calls.enqueue("q")
    empty = "select last_empty_at from pyjobs_internal.worker where name = 'ada'"
    assert len(calls.ask("ada", "q")) == 1
    assert calls.value(empty) is None
    assert calls.ask("ada", "q") == []
    since = calls.value(empty)
    assert since is not None
    calls.enqueue("r")
    assert len(calls.ask("ada", "r")) == 1
    assert workers(calls)["ada"]["queues"] == ["r"]
    assert calls.ask("ada", "r") == []
    assert calls.value(empty) == since


def test_a_retried_job_waits_since_its_retry_and_one_for_later_since_then(calls):
    calls.settable_clock()
    job = calls.enqueue("q")
    calls.finish(job)
    calls.pass_time("1 hour")
    calls.do("select pyjobs.retry_job(%s)", job)
    row = queues(calls)["q"]
    assert row["waiting_jobs"] == 1
    finished = calls.value("select at from pyjobs.job_history(%s) where to_status = 'RETRY'", job)
    assert abs(row["oldest_waiting"] - finished) < dt.timedelta(seconds=5)
    calls.enqueue("later", run_at="2099-01-01 00:00:00+00")
    row = queues(calls)["later"]
    assert (row["waiting_jobs"], row["oldest_waiting"].year) == (1, 2099)


def test_queues_without_jobs_show_if_paused_once_or_asked_for(calls):
    calls.do("select pyjobs.pause_queue('paused')")
    calls.do("select pyjobs.pause_queue('resumed')")
    calls.do("select pyjobs.resume_queue('resumed')")
    calls.ask("ada", "idle", "paused")
    calls.ask("bob", "idle")
    shown = {
        name: (row["paused"], row["workers"], row["waiting_jobs"], row["oldest_waiting"])
        for name, row in queues(calls).items()
    }
    assert shown == {
        "idle": (False, 2, 0, None),
        "paused": (True, 1, 0, None),
        "resumed": (False, 0, 0, None),
    }
    assert list(queues(calls)) == ["idle", "paused", "resumed"]


def test_workers_are_active_for_an_hour_after_they_were_seen(calls):
    calls.settable_clock()
    calls.enqueue("q", items=3)
    calls.ask("ada", "q", "r")
    calls.ask("ada", "q", "r")
    calls.ask("bob", "r")
    shown = workers(calls)
    assert [(name, row["queues"], row["leased_batches"]) for name, row in shown.items()] == [
        ("ada", ["q", "r"], 2),
        ("bob", ["r"], 0),
    ]
    calls.pass_time("59 minutes")
    assert set(workers(calls)) == {"ada", "bob"}
    calls.ask("bob", "r")
    calls.pass_time("2 minutes")
    assert set(workers(calls)) == {"bob"}


def test_operators_and_readers_may_ask(calls, as_role):
    calls.enqueue("q")
    for role in ("operator", "reader"):
        session = Calls(as_role(role))
        assert queues(session)["q"]["waiting_jobs"] == 1
        assert workers(session) == {}


KEPT = ("job", "batch", "stage", "job_start", "offer", "history", "refusal")


def rows_of(calls, job):
    """How many rows each table has of a job."""
    return {
        table: calls.value(
            f"select count(*) from pyjobs_internal.{table}"
            f" where {'id' if table == 'job' else 'job_id'} = %s",
            job,
        )
        for table in KEPT
    }


def test_purge_takes_final_jobs_of_that_age_with_all_that_is_theirs(calls):
    calls.settable_clock()
    old = calls.enqueue(items=2)
    batch = calls.claim(old, 2)[0]
    calls.do("select pyjobs.cancel_job(%s, null, '0')", old)
    calls.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001')", batch["batch_id"], batch["lease_epoch"]
    )
    calls.do("select pyjobs.retry_job(%s)", old)
    calls.finish(old)
    live = calls.enqueue(items=2)
    calls.claim(live)
    calls.pass_time("2 days")
    recent = calls.enqueue()
    calls.finish(recent)
    before = {job: rows_of(calls, job) for job in (live, recent)}
    assert all(rows_of(calls, old)[table] for table in KEPT if table != "offer")

    assert calls.value("select pyjobs.purge_jobs('3 days')") == 0
    assert calls.value("select pyjobs.purge_jobs('1 day')") == 1
    assert set(rows_of(calls, old).values()) == {0}
    assert {job: rows_of(calls, job) for job in (live, recent)} == before
    assert calls.audit() == []
    with pytest.raises(psycopg.Error, match="may have been purged") as caught:
        calls.progress(old)
    assert caught.value.sqlstate == "PJ004"
    assert calls.value("select pyjobs.purge_jobs('0')") == 1
    assert calls.status(live) == "STARTED"


def test_purge_works_through_more_than_it_takes_at_once(calls):
    calls.do(
        "select pyjobs.cancel_job(id) from unnest(pyjobs.enqueue_jobs('q',"
        " (select jsonb_agg(n) from generate_series(1, 250) n))) id"
    )
    kept = calls.enqueue("q")
    assert calls.value("select pyjobs.purge_jobs('0')") == 250
    assert calls.value("select array_agg(id) from pyjobs.job") == [kept]
    for table in KEPT:
        column = "id" if table == "job" else "job_id"
        assert (
            calls.value(f"select count(*) from pyjobs_internal.{table} where {column} <> %s", kept)
            == 0
        )


def test_purge_looks_at_each_of_many_jobs_once(calls, connect):
    """Not again, with each hundred, at what is left in the index of all that it has deleted."""
    calls.do(
        "select pyjobs.cancel_job(id) from unnest(pyjobs.enqueue_jobs('q',"
        " (select jsonb_agg(n) from generate_series(1, 1000) n))) id"
    )
    calls.do("vacuum analyze")
    purger = Calls(connect(autocommit=False))
    assert purger.value("select pyjobs.purge_jobs('0')") == 1_000
    looked_at = purger.value(
        "select pg_stat_get_xact_tuples_returned('pyjobs_internal.job_finished'::regclass)"
    )
    assert looked_at == 1_000


def test_purge_waits_for_nobody_and_leaves_a_job_that_is_being_retried(calls, connect):
    job = calls.enqueue()
    calls.finish(job)
    other = calls.enqueue()
    calls.finish(other)
    retrier = connect(autocommit=False)
    retrier.execute("select pyjobs.retry_job(%s)", [job])
    calls.do("set statement_timeout = '10s'")
    assert calls.value("select pyjobs.purge_jobs('0')") == 1
    retrier.commit()
    assert calls.status(job) == "RETRY"
    assert calls.audit() == []


def test_a_retry_that_waited_for_a_purge_finds_no_job(calls, connect, background, wait_for_lock):
    job = calls.enqueue()
    calls.finish(job)
    purger, retrier = connect(autocommit=False), connect()
    assert Calls(purger).value("select pyjobs.purge_jobs('0')") == 1
    call = background(retrier.execute, "select pyjobs.retry_job(%s)", [job])
    wait_for_lock(retrier, purger)
    purger.commit()
    with pytest.raises(psycopg.Error) as caught:
        call.result(20)
    assert caught.value.sqlstate == "PJ004"
    assert set(rows_of(calls, job).values()) == {0}


def test_purge_forgets_workers_that_nobody_has_seen_for_so_long(calls):
    calls.settable_clock()
    calls.ask("gone", "q")
    calls.pass_time("23 hours")
    calls.ask("there", "q")
    calls.do("select pyjobs.purge_jobs('0')")
    assert calls.value("select count(*) from pyjobs_internal.worker") == 2
    calls.pass_time("2 hours")
    calls.do("select pyjobs.purge_jobs('7 days')")
    assert calls.value("select count(*) from pyjobs_internal.worker") == 2
    calls.do("select pyjobs.purge_jobs('0')")
    assert calls.value("select string_agg(name, ',') from pyjobs_internal.worker") == "there"


def test_purge_refuses_an_age_that_is_none(calls):
    job = calls.enqueue()
    calls.finish(job)
    for bad in (None, "-1 second", "100000 years", "-1 month +29 days"):
        with pytest.raises(psycopg.Error, match="argument older_than must be") as caught:
            calls.do("select pyjobs.purge_jobs(%s::interval)", bad)
        assert caught.value.sqlstate == "PJ005"
    assert calls.status(job) == "SUCCESS"


def test_purge_refuses_an_age_without_end(calls):
    job = calls.enqueue()
    calls.finish(job)
    for infinite in ("infinity", "-infinity"):
        with pytest.raises(psycopg.Error) as caught:
            calls.do("select pyjobs.purge_jobs(%s)", infinite)
        # Before version 17 there is no such interval.
        known = calls.conn.info.server_version >= 170000
        assert caught.value.sqlstate == ("PJ005" if known else "22007")
    assert calls.status(job) == "SUCCESS"


def test_only_operators_purge(as_role):
    for role in ("producer", "worker", "reader"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_role(role).execute("select pyjobs.purge_jobs('1 day')")
    as_role("operator").execute("select pyjobs.purge_jobs('1 day')")
