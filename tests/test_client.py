"""The client calls what SQL has: every function, by its names, in the caller's transaction or not.

Each test runs with the synchronous and the asynchronous client.
"""

from __future__ import annotations

import inspect
import pickle
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

import pyjobs
from pyjobs import JobStatus
from pyjobs._calls import CALLS
from tests.support import wait_until

MINUTE = timedelta(minutes=1)


@pytest.fixture
def client(twin, dsn):
    with twin.client(dsn) as client:
        yield client


@pytest.fixture
def api(client, twin, dsn):
    """The client; of the asynchronous one, every call has a connection of ours.

    Both are one source, so that each call is seen both ways and in both forms.
    """
    if twin.name == "sync":
        yield client
        return

    with twin.connect(dsn, autocommit=True) as conn:

        class WithConn:
            def __getattr__(self, name):
                return lambda *args, **kwargs: getattr(client, name)(*args, **kwargs, conn=conn)

        yield WithConn()


# The table, the methods and the database agree


def functions_of(db) -> dict[str, list[tuple[str, str, bool]]]:
    rows = db.execute(
        """
        select p.proname, a.name, format_type(t.type, null), a.no > p.pronargs - p.pronargdefaults
        from pg_proc p
        left join lateral unnest(p.proargnames) with ordinality a (name, no)
            on a.no <= p.pronargs
        left join lateral unnest(p.proargtypes) with ordinality t (type, no) on t.no = a.no
        where p.pronamespace = 'pyjobs'::regnamespace
        order by p.proname, a.no
        """
    ).fetchall()
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for function, name, kind, optional in rows:
        found.setdefault(function, [])
        if name is not None:
            found[function].append((name, kind, optional))
    return found


def test_the_table_of_calls_has_every_public_function_as_it_is(db):
    aliases = {"int": "integer", "timestamptz": "timestamp with time zone"}
    table = {
        name: [
            (argument, aliases.get(kind.sql, kind.sql), position >= call.required)
            for position, (argument, kind) in enumerate(call.arguments.items())
        ]
        for name, call in CALLS.items()
    }
    assert table == functions_of(db)


@pytest.mark.parametrize("cls", [pyjobs.Client, pyjobs.AsyncClient])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_method_has_the_arguments_of_its_function(cls, name):
    call = CALLS[name]
    parameters = dict(inspect.signature(getattr(cls, name)).parameters)
    assert parameters.pop("conn").kind is inspect.Parameter.KEYWORD_ONLY
    parameters.pop("self")
    assert list(parameters) == list(call.arguments)
    optional = [p.default is None for p in parameters.values()]
    assert optional == [position >= call.required for position in range(len(parameters))]


def test_final_statuses_are_those_of_the_database(db):
    rows = db.execute("select status::text, final from pyjobs_internal.job_state").fetchall()
    assert {JobStatus(status): final for status, final in rows} == {
        status: status.final for status in JobStatus
    }


# Producers


def test_enqueue_job_sends_what_is_given_and_leaves_the_rest_to_sql(api, db):
    plain = api.enqueue_job("q")
    full = api.enqueue_job(
        "q",
        [1, {"b": None}],
        {"model": "x"},
        batch_size=2,
        priority=-3,
        run_at=datetime(2031, 1, 2, tzinfo=UTC),
        name="a survey",
        dedupe_key="k",
        failure_threshold=0.25,
        max_attempts=7,
        stages=["collect", "process"],
        barriers=["process"],
        hold=True,
        seal=False,
    )
    columns = (
        "params, batch_size, priority, name, dedupe_key, failure_threshold, max_attempts, stages,"
        " status::text, sealed"
    )
    assert db.execute(f"select {columns} from pyjobs.job where id = %s", [plain]).fetchone() == (
        {},
        1,
        0,
        None,
        None,
        Decimal("0.5"),
        3,
        ["process"],
        "PENDING",
        True,
    )
    assert db.execute(
        f"select {columns}, run_at from pyjobs.job where id = %s", [full]
    ).fetchone() == (
        {"model": "x"},
        2,
        -3,
        "a survey",
        "k",
        Decimal("0.25"),
        7,
        ["collect", "process"],
        "CREATED",
        False,
        datetime(2031, 1, 2, tzinfo=UTC),
    )
    items = db.execute("select items from pyjobs.batch where job_id = %s", [full]).fetchall()
    assert items == [([1, {"b": None}],)]
    assert api.enqueue_job("q", dedupe_key="k") == full


def test_an_empty_list_of_items_is_an_empty_job_and_none_is_one_item(api):
    assert api.job_progress(api.enqueue_job("q", [])).status is JobStatus.SUCCESS
    job = api.enqueue_job("q", None, {"only": "params"})
    (claim,) = api.claim_next_job("w", ["q"])
    assert (claim.job_id, claim.items) == (job, [{"only": "params"}])


def test_params_may_be_any_json_value(api):
    for value in [True, 3, 0.1, "text ✓ \U0001f52d", [], {}, [1, [2, {"a": [None]}]], Jsonb(None)]:
        api.enqueue_job("q", params=value)
        (claim,) = api.claim_next_job("w", ["q"])
        assert claim.params == (None if isinstance(value, Jsonb) else value)


def test_what_is_no_json_is_refused_before_it_is_sent(api):
    for value in [float("nan"), float("inf"), {1}]:
        with pytest.raises((ValueError, TypeError)):
            api.enqueue_job("q", [value])
    assert api.jobs() == []


def test_a_string_is_not_taken_for_a_list_of_its_letters(api):
    with pytest.raises(TypeError, match="not the string"):
        api.claim_next_job("w", "default")


def test_enqueue_jobs_returns_an_id_for_each(api):
    ids = api.enqueue_jobs("q", [{"n": 1}, {"n": 2}], priority=4, name="many")
    jobs = api.jobs(name="many")
    assert [(job.id, job.params, job.priority) for job in jobs] == [
        (ids[1], {"n": 2}, 4),
        (ids[0], {"n": 1}, 4),
    ]


def test_add_items_seal_and_release(api):
    job = api.enqueue_job("q", [1], stages=["a", "b"], hold=True, seal=False)
    assert api.add_items(job, [2, 3]) is JobStatus.CREATED
    assert api.add_items(job, [4], stage="b") is JobStatus.CREATED
    assert api.release_job(job) is JobStatus.PENDING
    assert api.seal_job(job) is JobStatus.PENDING
    assert [stage.total for stage in api.job_progress(job).stages] == [3, 1]


# Workers


def test_claims_are_typed_rows(api):
    job = api.enqueue_job("q", ["a", "b", "c"], {"p": 1}, batch_size=2)
    first, second = api.claim_next_job("w", ["q"], max_batches=5, lease=10 * MINUTE)
    assert isinstance(first, pyjobs.Claim)
    assert (first.job_id, first.run, first.attempt) == (job, 1, 1)
    assert (first.queue, first.stage, first.params) == ("q", "process", {"p": 1})
    assert (first.items, second.items) == (["a", "b"], ["c"])
    left = first.lease_expires_at - datetime.now(UTC)
    assert 9 * MINUTE < left <= 10 * MINUTE
    assert api.claim_next_job("w", ["q"]) == []
    with pytest.raises(AttributeError):
        first.job_id = 3


def test_claim_next_batch_and_claim_jobs(api):
    jobs = [api.enqueue_job("q", [1, 2]) for _ in range(3)]
    assert [c.job_id for c in api.claim_next_batch(jobs[2], "w", max_batches=2)] == [jobs[2]] * 2
    claims = api.claim_jobs("w", ["q"], 5, MINUTE)
    assert sorted(claim.job_id for claim in claims) == jobs[:2]


def test_record_batch(api):
    job = api.enqueue_job("q", ["a", "b"], batch_size=2, stages=["one", "two"])
    (claim,) = api.claim_next_job("w", ["q"])
    result = api.record_batch(
        claim.batch_id,
        claim.lease_epoch,
        failed=[{"index": 1, "error": "no"}],
        counters={"seen": 3},
        next_items=["next"],
    )
    assert result == pyjobs.RecordResult(
        job_id=job, job_status=JobStatus.STARTED, stage_done=True, job_done=False
    )
    (claim,) = api.claim_next_batch(job, "w")
    assert claim.items == ["next"]
    result = api.record_batch(claim.batch_id, claim.lease_epoch)
    assert (result.job_status, result.job_done) == (JobStatus.SUCCESS, True)


def test_record_and_claim(api):
    job = api.enqueue_job("q", [1, 2, 3])
    (claim,) = api.claim_next_job("w", ["q"])
    both = api.record_and_claim(
        claim.batch_id, claim.lease_epoch, "w", counters={"n": 1}, max_batches=2, lease=MINUTE
    )
    assert both.recorded_status is JobStatus.STARTED
    assert [(c.job_id, c.items) for c in both.claims] == [(job, [2]), (job, [3])]
    second, third = both.claims
    last = api.record_and_claim(second.batch_id, second.lease_epoch, "w")
    assert last == pyjobs.RecordedAndClaimed(JobStatus.STARTED, ())
    last = api.record_and_claim(third.batch_id, third.lease_epoch, "w")
    assert last == pyjobs.RecordedAndClaimed(JobStatus.SUCCESS, ())


def test_record_and_claim_goes_on_to_the_next_job(api):
    one, two = (api.enqueue_job("q", params={"n": n}) for n in (1, 2))
    (claim,) = api.claim_next_job("w", ["q"])
    both = api.record_and_claim(claim.batch_id, claim.lease_epoch, "w", queues=["q"])
    assert both.recorded_status is JobStatus.SUCCESS
    assert [(claim.job_id, c.job_id, c.params) for c in both.claims] == [(one, two, {"n": 2})]


def test_record_batches_says_what_became_of_each(api):
    job = api.enqueue_job("q", [1, 2, 3])
    one, two, three = api.claim_next_job("w", ["q"], max_batches=3)
    api.record_batch(one.batch_id, one.lease_epoch)
    outcomes = api.record_batches(
        [one.batch_id, two.batch_id, three.batch_id],
        [one.lease_epoch, two.lease_epoch + 1, three.lease_epoch],
        failed=[[], [], [{"index": 0, "error": "x"}]],
        counters=[{}, {}, {"n": 2}],
    )
    assert [(o.batch_id, o.outcome) for o in outcomes] == [
        (one.batch_id, pyjobs.Outcome.ALREADY),
        (two.batch_id, pyjobs.Outcome.STALE),
        (three.batch_id, pyjobs.Outcome.RECORDED),
    ]
    (stage,) = api.job_progress(job).stages
    assert (stage.processed, stage.failed, stage.counters) == (2, 1, {"n": 2})


def test_extend_lease_tells_of_a_cancel(api):
    job = api.enqueue_job("q", [1])
    (claim,) = api.claim_next_job("w", ["q"], lease=MINUTE)
    state = api.extend_lease(claim.batch_id, claim.lease_epoch, 10 * MINUTE)
    assert state.job_status is JobStatus.STARTED
    assert state.lease_expires_at > claim.lease_expires_at + 5 * MINUTE
    api.cancel_job(job)
    assert api.extend_lease(claim.batch_id, claim.lease_epoch).job_status is JobStatus.CANCELING


def test_release_batch(api, db):
    api.enqueue_job("q", [1])
    (claim,) = api.claim_next_job("w", ["q"])
    assert api.release_batch(claim.batch_id, claim.lease_epoch) is JobStatus.STARTED
    (again,) = api.claim_next_job("w", ["q"])
    assert (again.batch_id, again.attempt) == (claim.batch_id, 1)
    api.release_batch(again.batch_id, again.lease_epoch, error="broke", retry_in=timedelta(hours=1))
    assert api.claim_next_job("w", ["q"]) == []
    assert db.execute("select error from pyjobs.batch").fetchone() == ("broke",)


def test_report_refused(api, db):
    api.enqueue_job("q", [1])
    (claim,) = api.claim_next_job("w", ["q"])
    assert api.report_refused(claim.batch_id, claim.lease_epoch, "PJ001", "by w") is None
    assert db.execute("select batch_id, sqlstate, detail from pyjobs.refused").fetchone() == (
        claim.batch_id,
        "PJ001",
        "by w",
    )


# Operators


def test_cancel_and_reap(api):
    job = api.enqueue_job("q", [1])
    (claim,) = api.claim_next_job("w", ["q"])
    assert api.cancel_job(job, "not needed", grace=timedelta(0)) in {
        JobStatus.CANCELING,
        JobStatus.REVOKED,
    }
    api.reap_leases()
    assert api.reap(dry_run=True) == []
    assert api.job(job).status is JobStatus.REVOKED
    with pytest.raises(pyjobs.StaleLease):
        api.record_batch(claim.batch_id, claim.lease_epoch)


def test_reap_says_what_it_did_and_a_dry_run_does_nothing(api, db):
    job = api.enqueue_job("q", [1])
    (claim,) = api.claim_next_job("w", ["q"], lease=timedelta(milliseconds=1))
    wait_until(
        lambda: db.execute(
            "select lease_expires_at < clock_timestamp() from pyjobs.batch"
        ).fetchone()[0],
        "the lease is over",
    )
    (would,) = api.reap(dry_run=True)
    assert isinstance(would, pyjobs.Reaped)
    assert (would.job_id, would.batch_id) == (job, claim.batch_id)
    assert api.reap(stale_after=timedelta(days=1)) == [would]
    assert api.reap_leases() == []


def test_finalize_and_retry(api):
    job = api.enqueue_job("q", [1])
    assert api.finalize_job(job) == pyjobs.Finalized(False, JobStatus.PENDING)
    assert api.finalize_job(job, JobStatus.FAILURE, "given up") == pyjobs.Finalized(
        True, JobStatus.FAILURE
    )
    assert api.retry_job(job, failed_only=True) is JobStatus.RETRY
    entries = api.job_history(job)
    assert [(e.from_status, e.to_status, e.run) for e in entries] == [
        (None, JobStatus.PENDING, 1),
        (JobStatus.PENDING, JobStatus.FAILURE, 1),
        (JobStatus.FAILURE, JobStatus.RETRY, 2),
    ]
    assert entries[1].reason == "given up"


def test_quarantine_and_resolve(api):
    job = api.enqueue_job("q", [1])
    assert api.quarantine_job(job, "odd") is JobStatus.UNKNOWN
    assert api.resolve_job(job, "RETRY", "looked at it") is JobStatus.RETRY


def test_pausing_and_priority(api):
    job = api.enqueue_job("q", [1])
    assert api.set_priority(job, 9) is JobStatus.PENDING
    assert api.pause_job(job) is JobStatus.PENDING
    assert api.pause_queue("q") is None
    found = api.job(job)
    assert (found.priority, found.paused, found.queue_paused) == (9, True, True)
    assert api.resume_job(job) is JobStatus.PENDING
    assert api.claim_next_job("w", ["q"]) == []
    assert api.resume_queue("q") is None
    assert len(api.claim_next_job("w", ["q"])) == 1


def test_purge_jobs(api):
    api.enqueue_job("q", [])
    assert api.purge_jobs(timedelta(days=1)) == 0
    assert api.purge_jobs(timedelta(0)) == 1


# Readers


def test_progress_is_typed_and_keeps_the_document(api):
    job = api.enqueue_job("q", ["a", "b", "c", "d"], batch_size=2)
    (claim,) = api.claim_next_job("w", ["q"])
    api.record_batch(claim.batch_id, claim.lease_epoch, [{"index": 0, "error": "bad"}], {"seen": 5})
    progress = api.job_progress(job)
    assert (progress.status, progress.progress) == (JobStatus.STARTED, 0.5)
    (stage,) = progress.stages
    assert (stage.key, stage.status, stage.total) == ("process", "running", 4)
    assert (stage.pending, stage.leased, stage.processed) == (2, 0, 2)
    assert (stage.failed, stage.remaining, stage.counters) == (1, 2, {"seen": 5})
    assert progress.errors == (pyjobs.JobError(stage="process", item="a", error="bad"),)
    assert progress.more_errors == 0
    assert progress.document["summary"]["status"] == "STARTED"


def test_explain_audit_stats_and_workers(api):
    job = api.enqueue_job("q", [1, 2])
    api.claim_next_job("w", ["q"])
    findings = api.explain_job(job)
    assert findings
    assert all(isinstance(finding, pyjobs.Explanation) for finding in findings)
    assert api.audit_job() == []
    assert api.audit_job(job) == []
    (queue,) = api.queue_stats()
    assert (queue.queue, queue.paused, queue.leased_batches) == ("q", False, 1)
    (worker,) = api.active_workers()
    assert (worker.worker, worker.queues, worker.leased_batches) == ("w", ["q"], 1)


def test_audit_rows_are_typed(api, db):
    job = api.enqueue_job("q", [1])
    (claim,) = api.claim_next_job("w", ["q"])
    api.record_batch(claim.batch_id, claim.lease_epoch)
    db.execute("update pyjobs_internal.stage set succeeded = 5, total = 5 where job_id = %s", [job])
    rows = api.audit_job(job)
    assert rows
    assert {row.job_id for row in rows} == {job}


def test_jobs_are_listed_by_queue_status_and_name(api):
    first = api.enqueue_job("a", [1], name="x")
    second = api.enqueue_job("a", [])
    third = api.enqueue_job("b", [1], name="x")
    ids = [third, second, first]
    assert [job.id for job in api.jobs()] == ids
    assert [job.id for job in api.jobs("a")] == [second, first]
    assert [job.id for job in api.jobs(status=JobStatus.SUCCESS)] == [second]
    assert [job.id for job in api.jobs(status=["PENDING", JobStatus.SUCCESS])] == ids
    assert [job.id for job in api.jobs(status=[])] == []
    assert [job.id for job in api.jobs(name="x", queue="a")] == [first]
    assert [job.id for job in api.jobs(limit=2)] == ids[:2]
    assert [job.id for job in api.jobs(before=second)] == [first]
    job = api.job(second)
    assert job.status is JobStatus.SUCCESS
    assert job.finished_at is not None
    with pytest.raises(pyjobs.NotFound, match="no job 0"):
        api.job(0)


def test_a_name_is_a_value_and_never_sql(api):
    name = "x'; drop schema pyjobs cascade; --"
    api.enqueue_job(name, [1], name=name, dedupe_key=name)
    (job,) = api.jobs(queue=name, name=name)
    assert (job.queue, job.name) == (name, name)


# Errors


def stale(api):
    api.enqueue_job("q")
    (claim,) = api.claim_next_job("w", ["q"])
    api.record_batch(claim.batch_id, claim.lease_epoch + 1)


def already(api):
    api.enqueue_job("q", [1, 2])
    (claim,) = api.claim_next_job("w", ["q"])
    for _ in range(2):
        api.record_batch(claim.batch_id, claim.lease_epoch)


@pytest.mark.parametrize(
    ("call", "error", "sqlstate"),
    [
        (stale, pyjobs.StaleLease, "PJ001"),
        (already, pyjobs.AlreadyRecorded, "PJ002"),
        (lambda api: api.retry_job(api.enqueue_job("q")), pyjobs.IllegalTransition, "PJ003"),
        (lambda api: api.job_progress(0), pyjobs.NotFound, "PJ004"),
        (lambda api: api.enqueue_job("q", batch_size=0), pyjobs.InvalidArgument, "PJ005"),
        (lambda api: api.enqueue_job(None), pyjobs.InvalidArgument, "PJ005"),
        (lambda api: api.add_items(api.enqueue_job("q"), [1]), pyjobs.NotAccepted, "PJ006"),
    ],
)
def test_each_sqlstate_has_its_error(api, call, error, sqlstate):
    with pytest.raises(error) as caught:
        call(api)
    exc = caught.value
    assert isinstance(exc, pyjobs.Error)
    assert exc.sqlstate == sqlstate
    assert isinstance(exc.__cause__, psycopg.Error)
    assert exc.message == exc.__cause__.diag.message_primary
    assert str(exc).splitlines()[0] == exc.message
    assert exc.detail is None or f"DETAIL: {exc.detail}" in str(exc)
    assert exc.hint is None or f"HINT: {exc.hint}" in str(exc)
    again = pickle.loads(pickle.dumps(exc))
    assert (type(again), str(again), again.sqlstate) == (error, str(exc), sqlstate)


def test_a_stale_lease_says_what_to_do(api):
    with pytest.raises(pyjobs.StaleLease) as caught:
        stale(api)
    assert "DETAIL: " in str(caught.value)
    assert "HINT: Roll back" in str(caught.value)


def test_wrong_isolation(client, twin, dsn):
    client.enqueue_job("q")
    with twin.connect(dsn) as conn:
        conn.execute("set transaction isolation level serializable")
        with pytest.raises(pyjobs.WrongIsolation) as caught:
            client.claim_next_job("w", ["q"], conn=conn)
        assert caught.value.sqlstate == "PJ007"
        conn.rollback()


def test_an_error_of_class_pj_that_is_not_known_yet_is_an_error(db):
    with pytest.raises(pyjobs.Error, match="news") as caught, pyjobs.errors.translated():
        db.execute("do $$ begin raise 'news' using errcode = 'PJ999'; end $$")
    assert type(caught.value) is pyjobs.Error
    assert caught.value.sqlstate == "PJ999"


def test_other_errors_of_the_database_come_as_they_are(client, database, twin):
    with (
        twin.client(database.dsn_of("reader")) as reader,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        reader.enqueue_job("q")


# The caller's transaction


def test_conn_runs_in_the_callers_transaction(client, twin, dsn):
    with twin.connect(dsn) as conn:
        job = client.enqueue_job("q", conn=conn)
        assert client.jobs() == []
        conn.rollback()
        assert client.jobs() == []
        job = client.enqueue_job("q", conn=conn)
        assert [found.id for found in client.jobs(conn=conn)] == [job]
        conn.commit()
    assert [found.id for found in client.jobs()] == [job]


def test_transaction_gives_a_connection_for_several_calls(client):
    with client.transaction() as conn:
        job = client.enqueue_job("q", conn=conn)
        client.pause_job(job, conn=conn)
        assert client.jobs() == []
    assert [found.paused for found in client.jobs()] == [True]
    with pytest.raises(ZeroDivisionError), client.transaction() as conn:  # noqa: PT012
        client.enqueue_job("q", conn=conn)
        raise ZeroDivisionError
    assert len(client.jobs()) == 1


def test_rows_of_a_newer_schema_are_read_all_the_same():
    row = {"transitioned": True, "status": "SUCCESS", "something": "new"}
    assert pyjobs.Finalized.from_row(row) == pyjobs.Finalized(True, JobStatus.SUCCESS)


# Waiting


def test_wait_returns_the_progress_of_a_final_job(client, background, connect, db):
    job = client.enqueue_job("q", [1])
    (claim,) = client.claim_next_job("w", ["q"])

    def record_when_awaited():
        # The one who waits asks again and again: when it has asked, record.
        wait_until(
            lambda: db.execute(
                "select calls_seen from (select count(*) as calls_seen from pg_stat_activity"
                " where application_name = 'pyjobs' and query like '%%job_progress%%') a"
            ).fetchone()[0],
            "somebody waits for the job",
        )
        db.execute("select pyjobs.record_batch(%s, %s)", [claim.batch_id, claim.lease_epoch])

    done = background(record_when_awaited)
    progress = client.wait(job, timeout=30, poll=0.01)
    done.result(20)
    assert (progress.status, progress.progress) == (JobStatus.SUCCESS, 1)


def test_wait_raises_when_the_job_is_not_final_in_time(client):
    job = client.enqueue_job("q", [1])
    with pytest.raises(TimeoutError, match=rf"job {job} is PENDING at 0.0% after"):
        client.wait(job, timeout=timedelta(milliseconds=30), poll=timedelta(milliseconds=10))
    with pytest.raises(pyjobs.NotFound):
        client.wait(0)


# Connections


def test_the_client_connects_when_it_is_first_used_and_closes_with_its_block(twin, dsn, db):
    def sessions():
        return db.execute(
            "select count(*) from pg_stat_activity"
            " where application_name = 'pyjobs' and datname = current_database()"
        ).fetchone()[0]

    with twin.client(dsn) as client:
        assert sessions() == 0
        client.enqueue_job("q")
        assert sessions() == 1
    wait_until(lambda: sessions() == 0, "the client has closed its connections")
    with pytest.raises(psycopg.OperationalError):
        client.enqueue_job("q")


def test_the_name_of_the_application_may_be_given(twin, dsn, db):
    with twin.client(f"{dsn} application_name=survey") as client:
        client.enqueue_job("q")
        assert db.execute(
            "select count(*) from pg_stat_activity where application_name = 'survey'"
        ).fetchone() == (1,)


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_pool_of_the_callers_is_used_and_stays_open(twin, dsn, autocommit):
    cls = AsyncConnectionPool if twin.name == "async" else ConnectionPool

    def use(pool: Any) -> None:
        with twin.client(pool) as client:
            job = client.enqueue_job("q")
        with twin.client(pool) as client:
            assert [found.id for found in client.jobs()] == [job]

    if twin.name == "sync":
        with cls(dsn, kwargs={"autocommit": autocommit}, open=False, min_size=1) as pool:
            use(pool)
    else:
        pool = cls(dsn, kwargs={"autocommit": autocommit}, open=False, min_size=1)
        twin.runner.run(pool.open())
        use(pool)
        twin.runner.run(pool.close())


def test_a_server_that_cannot_be_reached_is_told_at_once(twin, tmp_path):
    with (
        twin.client(f"host={tmp_path} dbname=x") as client,
        pytest.raises(psycopg.OperationalError, match="No such file") as caught,
    ):
        client.queue_stats()
    assert not isinstance(caught.value, PoolTimeout)


def test_what_the_pool_waits_for_in_vain_is_told(twin, dsn, db, admin):
    with twin.client(dsn, timeout=0.3) as client:
        client.queue_stats()
        (name,) = db.execute("select current_database()").fetchone()
        admin.execute(f'alter database "{name}" connection limit 0')
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'pyjobs'"
        )
        with pytest.raises(PoolTimeout, match="too many connections for database"):
            client.queue_stats()


def test_a_connection_that_died_in_the_pool_is_replaced_before_a_call(twin, dsn, admin):
    with twin.client(dsn) as client:
        client.enqueue_job("q")
        admin.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
            " where application_name = 'pyjobs' and datname = current_database()"
        )
        # A call that is never repeated: it must not have been tried on the dead connection.
        client.enqueue_job("q")
        assert len(client.jobs()) == 2


def test_a_closed_pool_is_not_waited_for(twin, dsn):
    client = twin.client(dsn)
    with client:
        client.queue_stats()
    with pytest.raises((PoolClosed, psycopg.OperationalError)):
        client.queue_stats()


@pytest.mark.parametrize("threshold", [None, 0, 2])
def test_statements_can_be_prepared_and_are_not_unless_asked(twin, dsn, threshold):
    with twin.client(dsn, prepare_threshold=threshold) as client:
        job = client.enqueue_job("q")
        for _ in range(4):
            client.job_progress(job)
        for number in (1, 70_000, 3_000_000_000):
            # Numbers of all sizes make the same statement.
            with pytest.raises(pyjobs.NotFound):
                client.job_progress(number + 10)
        with client.connection() as conn:
            (prepared,) = conn.execute(
                "select count(*) from pg_prepared_statements"
                " where starts_with(statement, 'select * from pyjobs.job_progress')"
            ).fetchone()
    assert prepared == (0 if threshold is None else 1)


# Repeating


@pytest.fixture
def fail_first(db):
    """``fail_first(n, sqlstate)``: the first n inserts of a job fail so; returns a counter."""

    def arrange(times: int, sqlstate: str):
        # A sequence is not rolled back with the transaction that asked it.
        db.execute("create sequence public.tries")
        db.execute(
            f"""
            create function public.fail_first() returns trigger language plpgsql as $$
            begin
                if nextval('public.tries') <= {times} then
                    raise 'made to fail' using errcode = '{sqlstate}';
                end if;
                return new;
            end $$;
            create trigger fail_first before insert on pyjobs_internal.job
            for each row execute function public.fail_first();
            """
        )
        return lambda: db.execute("select last_value from public.tries").fetchone()[0]

    return arrange


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
def test_a_call_that_the_server_rolled_back_is_tried_again(client, fail_first, sqlstate):
    tries = fail_first(2, sqlstate)
    client.enqueue_job("q")
    assert tries() == 3
    assert len(client.jobs()) == 1


def test_it_is_tried_five_times_and_then_raised(client, fail_first):
    tries = fail_first(9, "40P01")
    with pytest.raises(psycopg.errors.DeadlockDetected):
        client.enqueue_job("q")
    assert tries() == 5


def test_in_a_callers_transaction_nothing_is_repeated(client, fail_first, twin, dsn):
    tries = fail_first(1, "40P01")
    with twin.connect(dsn) as conn:
        with pytest.raises(psycopg.errors.DeadlockDetected):
            client.enqueue_job("q", conn=conn)
        conn.rollback()
    assert tries() == 1


def test_other_errors_are_not_tried_again(client, fail_first):
    tries = fail_first(1, "23514")
    with pytest.raises(psycopg.errors.CheckViolation):
        client.enqueue_job("q")
    assert tries() == 1
