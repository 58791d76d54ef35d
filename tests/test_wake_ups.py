"""Workers who listen hear of work, whoever makes it claimable; and only who went away empty.

Broken by hand, each seen red: no wake-up in offer_job, in set_queue_paused; one without a look at
who went away empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    Connection = psycopg.Connection[Any]


def emptied(calls: Calls, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """A job all of whose batches are leased."""
    job = calls.enqueue("q", **options)
    return job, calls.rows("select * from pyjobs.claim_next_job('w', '{q}', 10)")


def added(calls: Calls) -> Callable[[], object]:
    job, _ = emptied(calls, items=1, seal=False)
    return lambda: calls.do("select pyjobs.add_items(%s, '[1]')", job)


def emitted(calls: Calls) -> Callable[[], object]:
    _, (batch, *_) = emptied(calls, items=2, stages=["one", "two"])
    return lambda: calls.record(batch, next_items=[1])


def opened(calls: Calls) -> Callable[[], object]:
    _, (batch,) = emptied(calls, items=1, stages=["one", "two"], barriers=["two"])
    return lambda: calls.record(batch, next_items=[1])


def released(calls: Calls) -> Callable[[], object]:
    job = calls.enqueue("q", items=1, hold=True)
    return lambda: calls.do("select pyjobs.release_job(%s)", job)


def given_back(calls: Calls) -> Callable[[], object]:
    _, (batch,) = emptied(calls, items=1)
    lease = batch["batch_id"], batch["lease_epoch"]
    return lambda: calls.do("select pyjobs.release_batch(%s, %s)", *lease)


def run_out(calls: Calls) -> Callable[[], object]:
    emptied(calls, items=1)
    calls.pass_time("61 seconds")
    return lambda: calls.do("select count(*) from pyjobs.reap()")


def retried(calls: Calls) -> Callable[[], object]:
    job, (batch,) = emptied(calls, items=1)
    calls.record(batch)
    return lambda: calls.do("select pyjobs.retry_job(%s)", job)


def resolved(calls: Calls) -> Callable[[], object]:
    job = calls.enqueue("q", items=1)
    calls.do("select pyjobs.quarantine_job(%s, 'looks odd')", job)
    return lambda: calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'it is not')", job)


def resumed(calls: Calls) -> Callable[[], object]:
    job = calls.enqueue("q", items=1)
    calls.do("select pyjobs.pause_job(%s)", job)
    return lambda: calls.do("select pyjobs.resume_job(%s)", job)


def queue_resumed(calls: Calls) -> Callable[[], object]:
    calls.enqueue("q", items=1)
    calls.do("select pyjobs.pause_queue('q')")
    return lambda: calls.do("select pyjobs.resume_queue('q')")


def enqueued(calls: Calls) -> Callable[[], object]:
    return lambda: calls.enqueue("q", items=1)


def enqueued_plain(calls: Calls) -> Callable[[], object]:
    return lambda: calls.do("select pyjobs.enqueue_job('q', params => '{}')")


def enqueued_many(calls: Calls) -> Callable[[], object]:
    return lambda: calls.do("select pyjobs.enqueue_jobs('q', '[1, 2]')")


WORK = [added, emitted, opened, released, given_back, run_out, retried, resolved, resumed,
        queue_resumed, enqueued, enqueued_plain, enqueued_many]  # fmt: skip


def heard(listener: Connection, calls: Calls) -> list[str]:
    """The queues of which a listener was told before now."""
    calls.do("select pg_notify('pyjobs', 'so far')")
    payloads: list[str] = []
    for notice in listener.notifies(timeout=60):
        if notice.payload == "so far":
            return payloads
        payloads.append(notice.payload)
    raise AssertionError("notifications do not arrive")


@pytest.mark.parametrize("work", WORK)
def test_who_makes_work_claimable_wakes_who_listens(
    work: Callable[[Calls], Callable[[], object]],
    db: Connection,
    connect: Callable[..., Connection],
) -> None:
    calls = Calls(db)
    calls.settable_clock()
    act = work(calls)
    listener = connect(direct=True)
    listener.execute("listen pyjobs")
    assert calls.ask("w", "q") == []
    act()
    assert set(heard(listener, calls)) == {"q"}
    assert calls.ask("w", "q") != []


@pytest.mark.parametrize("work", WORK)
def test_nobody_is_waked_where_nobody_went_away_empty(
    work: Callable[[Calls], Callable[[], object]],
    db: Connection,
    connect: Callable[..., Connection],
) -> None:
    """A notification takes a lock of the whole server."""
    calls = Calls(db)
    calls.settable_clock()
    act = work(calls)
    listener = connect(direct=True)
    listener.execute("listen pyjobs")
    calls.do("update pyjobs_internal.worker set last_empty_at = null")
    act()
    assert heard(listener, calls) == []
