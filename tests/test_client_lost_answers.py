"""After a lost connection the client repeats what does no harm twice, and nothing else."""

from __future__ import annotations

import psycopg
import pytest

import pyjobs
from pyjobs import JobStatus
from tests.support.proxy import Proxy


@pytest.fixture
def proxy(dsn):
    with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
def client(twin, proxy):
    with twin.client(proxy.dsn) as client:
        client.queue_stats()
        yield client


@pytest.fixture
def claim(client):
    client.enqueue_job("q", [1, 2])
    (claim,) = client.claim_next_job("w", ["q"])
    return claim


def test_a_record_whose_answer_was_lost_counts_once_and_says_so(client, proxy, claim):
    proxy.cut_after(b"record_batch")
    with pytest.raises(pyjobs.AlreadyRecorded):
        client.record_batch(claim.batch_id, claim.lease_epoch)
    assert proxy.cuts == 1
    assert client.job_progress(claim.job_id).stages[0].processed == 1


def test_a_record_that_never_arrived_is_sent_again(client, proxy, claim):
    proxy.cut_before(b"record_batch")
    assert client.record_batch(claim.batch_id, claim.lease_epoch).job_status is JobStatus.STARTED
    assert proxy.cuts == 1
    assert client.job_progress(claim.job_id).stages[0].processed == 1


def test_a_batch_given_back_with_a_lost_answer_is_given_back_once(client, proxy, claim):
    proxy.cut_after(b"release_batch")
    with pytest.raises(pyjobs.StaleLease):
        client.release_batch(claim.batch_id, claim.lease_epoch, "broke")
    claims = client.claim_next_job("w", ["q"], max_batches=2)
    assert {c.batch_id: c.attempt for c in claims}[claim.batch_id] == 2


def test_a_claim_is_repeated(client, proxy, claim):
    proxy.cut_after(b"claim_next_job")
    # The first claim took the other batch, and nobody knows of it: it runs out by itself.
    assert client.claim_next_job("w", ["q"]) == []
    assert proxy.cuts == 1
    assert client.job_progress(claim.job_id).stages[0].leased == 2


@pytest.mark.parametrize("cut", ["cut_after", "cut_before"])
def test_reading_is_repeated(client, proxy, claim, cut):
    getattr(proxy, cut)(b"job_progress")
    assert client.job_progress(claim.job_id).status is JobStatus.STARTED
    assert proxy.cuts == 1


@pytest.mark.parametrize(("cut", "jobs"), [("cut_after", 1), ("cut_before", 0)])
def test_what_would_be_done_twice_is_not_repeated(client, proxy, cut, jobs):
    getattr(proxy, cut)(b"enqueue_job")
    with pytest.raises(psycopg.OperationalError):
        client.enqueue_job("q")
    assert proxy.cuts == 1
    assert len(client.jobs()) == jobs


def test_in_a_callers_transaction_nothing_is_repeated(client, twin, proxy, claim):
    with pytest.raises(psycopg.OperationalError), client.transaction() as conn:  # noqa: PT012
        proxy.cut_before(b"record_batch")
        client.record_batch(claim.batch_id, claim.lease_epoch, conn=conn)
    assert client.job_progress(claim.job_id).stages[0].processed == 0


def test_waiting_for_a_job_survives_a_cut(client, proxy, claim):
    client.record_batch(claim.batch_id, claim.lease_epoch)
    (last,) = client.claim_next_job("w", ["q"])
    proxy.cut_before(b"job_progress")
    client.record_batch(last.batch_id, last.lease_epoch)
    assert client.wait(claim.job_id, timeout=20).status is JobStatus.SUCCESS
    assert proxy.cuts == 1


def test_a_fused_record_whose_answer_was_lost_counts_once_and_says_so(client, proxy, claim):
    """What it claimed nobody knows of: that lease runs out by itself."""
    proxy.cut_after(b"record_and_claim")
    with pytest.raises(pyjobs.AlreadyRecorded):
        client.record_and_claim(claim.batch_id, claim.lease_epoch, "w", counters={"seen": 1})
    assert proxy.cuts == 1
    (stage,) = client.job_progress(claim.job_id).stages
    assert (stage.processed, stage.leased, stage.counters) == (1, 1, {"seen": 1})
    assert client.audit_job() == []


def test_a_fused_record_that_never_arrived_is_sent_again(client, proxy, claim):
    proxy.cut_before(b"record_and_claim")
    told = client.record_and_claim(claim.batch_id, claim.lease_epoch, "w", counters={"seen": 1})
    assert len(told.claims) == 1
    assert proxy.cuts == 1
    (stage,) = client.job_progress(claim.job_id).stages
    assert (stage.processed, stage.leased, stage.counters) == (1, 1, {"seen": 1})


@pytest.mark.parametrize(("cut", "outcome"), [("cut_after", "already"), ("cut_before", "recorded")])
def test_many_records_with_one_lost_answer_count_once_each(client, proxy, cut, outcome):
    job = client.enqueue_job("q", list(range(5)))
    claims = client.claim_next_job("w", ["q"], max_batches=5)
    getattr(proxy, cut)(b"record_batches")
    told = client.record_batches(
        [c.batch_id for c in claims],
        [c.lease_epoch for c in claims],
        counters=[{"seen": 1}] * 5,
    )
    assert proxy.cuts == 1
    assert [one.outcome for one in told] == [outcome] * 5
    progress = client.job_progress(job)
    assert progress.status is JobStatus.SUCCESS
    assert (progress.stages[0].processed, progress.stages[0].counters) == (5, {"seen": 5})


@pytest.mark.parametrize("cut", ["cut_after", "cut_before"])
def test_a_job_with_a_dedupe_key_can_be_asked_for_until_there_is_an_answer(client, proxy, cut):
    getattr(proxy, cut)(b"enqueue_job")
    with pytest.raises(psycopg.OperationalError):
        client.enqueue_job("q", [1, 2], dedupe_key="once")
    assert proxy.cuts == 1
    job = client.enqueue_job("q", [1, 2], dedupe_key="once")
    assert [j.id for j in client.jobs()] == [job]
    assert client.job_progress(job).stages[0].total == 2


@pytest.mark.parametrize(("cut", "rows"), [("cut_after", 1), ("cut_before", 0)])
def test_a_lost_commit_took_the_callers_rows_along_or_neither(
    client, twin, proxy, claim, db, cut, rows
):
    """Posted once more it is told which, and then both are there once."""
    db.execute("create table public.result (batch_id bigint)")

    def post():
        with client.transaction() as conn:
            conn.execute("insert into public.result values (%s)", [claim.batch_id])
            client.record_batch(claim.batch_id, claim.lease_epoch, conn=conn)
            if not proxy.cuts:
                getattr(proxy, cut)(b"COMMIT")

    with pytest.raises(psycopg.OperationalError):
        post()
    assert proxy.cuts == 1
    assert len(db.execute("select from public.result").fetchall()) == rows
    assert client.job_progress(claim.job_id).stages[0].processed == rows
    if rows:
        with pytest.raises(pyjobs.AlreadyRecorded):
            post()
    else:
        post()
    assert len(db.execute("select from public.result").fetchall()) == 1
    assert client.job_progress(claim.job_id).stages[0].processed == 1
