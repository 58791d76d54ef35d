"""The helpers for applications' tests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

import pyjobs
from pyjobs import JobStatus
from pyjobs.testing import SettableClock, async_run_until_idle, run_until_idle


@pytest.fixture
def client(dsn):
    with pyjobs.Client(dsn) as client:
        yield client


def test_a_handler_is_run_over_all_that_can_be_claimed(client):
    def handler(batch, conn):
        batch.count(done=len(batch.items))

    job = client.enqueue_job("q", [1, 2, 3], batch_size=2)
    run_until_idle(client, handler, ["q"])
    progress = client.job_progress(job)
    assert (progress.status, progress.stages[0].counters) == (JobStatus.SUCCESS, {"done": 3})


def test_an_asynchronous_handler_too(client, dsn):
    async def handler(batch, conn):
        await conn.execute("select 1")
        batch.count(done=1)

    async def run():
        async with pyjobs.AsyncClient(dsn) as aclient:
            await async_run_until_idle(aclient, handler, ["q"])

    job = client.enqueue_job("q", [1])
    asyncio.run(run())
    assert client.job_progress(job).stages[0].counters == {"done": 1}


def test_what_a_handler_raises_is_raised_when_its_attempts_are_used_up(client):
    attempts = []

    def handler(batch, conn):
        attempts.append(batch.attempt)
        raise LookupError("nothing there")

    job = client.enqueue_job("q", [1])
    with pytest.raises(LookupError, match="nothing there"):
        run_until_idle(client, handler, ["q"])
    assert attempts == [1, 2, 3]
    assert client.job(job).status is JobStatus.FAILURE
    client.enqueue_job("q", [1])
    run_until_idle(client, handler, ["q"], raise_errors=False)


def test_a_clock_that_can_be_set_lets_leases_and_schedules_pass(client, db):
    clock = SettableClock(db)
    client.enqueue_job("q", [1])
    (claim,) = client.claim_next_job("gone", ["q"])
    later = client.enqueue_job("later", run_at=datetime.now(UTC) + timedelta(days=2))
    assert client.reap_leases() == []
    clock.advance(timedelta(minutes=2))
    assert [reaped.batch_id for reaped in client.reap_leases()] == [claim.batch_id]
    assert client.claim_next_job("w", ["later"]) == []
    clock.advance(timedelta(days=3))
    assert [claim.job_id for claim in client.claim_next_job("w", ["later"])] == [later]


def test_a_worker_that_finds_nothing_takes_back_what_has_expired(client, db):
    def handler(batch, conn):
        pass

    clock = SettableClock(db)
    job = client.enqueue_job("q", [1])
    client.claim_next_job("gone", ["q"])
    run_until_idle(client, handler, ["q"])
    assert client.job(job).status is JobStatus.STARTED
    clock.advance(timedelta(minutes=2))
    run_until_idle(client, handler, ["q"])
    assert client.job(job).status is JobStatus.SUCCESS
