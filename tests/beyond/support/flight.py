"""Jobs in every state that a move can meet them in, and how they are brought to their ends."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from tests.support.rules import FINAL

if TYPE_CHECKING:
    from tests.support.calls import Calls

HOLDER = "holder"


@dataclasses.dataclass
class Flight:
    """``leases`` are out with workers who will post their results after the move."""

    jobs: dict[str, int]
    leases: dict[str, dict[str, Any]]


def take_off(calls: Calls) -> Flight:
    """A job in each state; with leases out, graces that run, and batches that wait for a time."""
    jobs: dict[str, int] = {}
    leases: dict[str, dict[str, Any]] = {}

    def job(name: str, items: int = 4, **options: Any) -> int:
        jobs[name] = calls.enqueue("flight", items, name=name, **options)
        return jobs[name]

    def lease(name: str) -> dict[str, Any]:
        (leases[name],) = calls.claim(jobs[name], worker=HOLDER, lease="1 hour")
        return leases[name]

    def post(batch: dict[str, Any], failed: Any = (), emits: Any = None) -> None:
        items = batch["items"]
        calls.do("begin")
        calls.do(
            "insert into public.result values (%s, %s, %s)",
            batch["batch_id"],
            batch["lease_epoch"],
            len(items),
        )
        calls.record(batch, failed, {"done": len(items)}, emits)
        calls.do("commit")

    def one(name: str) -> dict[str, Any]:
        (batch,) = calls.claim(jobs[name], worker="flight")
        return batch

    job("new")
    job("held", hold=True)
    job("later", run_at="2100-01-01")
    job("keyed", dedupe_key="key")
    job("leased")
    lease("leased")
    job("last out", 1)
    lease("last out")

    job("cancelled with grace")
    lease("cancelled with grace")
    calls.do("select pyjobs.cancel_job(%s, 'flight', '1 hour')", jobs["cancelled with grace"])
    job("cancelled at once")
    lease("cancelled at once")
    calls.do("select pyjobs.cancel_job(%s, 'flight', '0')", jobs["cancelled at once"])

    job("unsealed", seal=False)
    post(one("unsealed"))
    job("paused")
    post(one("paused"))
    calls.do("select pyjobs.pause_job(%s)", jobs["paused"])
    jobs["of a paused queue"] = calls.enqueue("lane", 2, name="of a paused queue")
    calls.do("select pyjobs.pause_queue('lane')")

    job("half", 6, stages=["one", "two", "three"], barriers=["two"], batch_size=2)
    post(one("half"), emits=[7, 8, 9])
    lease("half")

    job("due later", 2)
    batch = one("due later")
    calls.do(
        "select pyjobs.release_batch(%s, %s, 'again', '1 hour')",
        batch["batch_id"],
        batch["lease_epoch"],
    )
    job("succeeded", 1)
    post(one("succeeded"))
    job("failed", 1)
    post(one("failed"), failed=[0])
    job("retried", 4)
    for _ in range(4):
        post(one("retried"), failed=[0])
    calls.do("select pyjobs.retry_job(%s, true)", jobs["retried"])
    post(one("retried"))
    lease("retried")
    job("aside")
    calls.do("select pyjobs.quarantine_job(%s, 'flight')", jobs["aside"])
    job("expired", max_attempts=1)
    (leases["expired"],) = calls.claim(jobs["expired"], worker=HOLDER, lease="1 millisecond")

    # So many claimed at once that its low-water mark has been moved.
    job("marked", 700)
    for batch in calls.claim(jobs["marked"], 512, worker=HOLDER, lease="1 hour")[:5]:
        post(batch)
    assert calls.value("select count(*) from pyjobs_internal.claim_mark") > 0
    return Flight(jobs, leases)


def land(calls: Calls, queues: list[str], worker: str = "home") -> list[str]:
    """Bring every job to its end by what operators and workers do; those that could not be.

    The clock must be settable: leases run out, graces end, due times come.
    """
    calls.do("select pyjobs.resume_queue(name) from pyjobs_internal.queue")
    for row in calls.rows("select id, status, paused, sealed from pyjobs.job order by id"):
        if row["status"] in FINAL:
            continue
        if row["status"] == "UNKNOWN":
            calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'home')", row["id"])
        for wanted, call in (
            (row["status"] == "CREATED", "release_job"),
            (row["paused"], "resume_job"),
            (not row["sealed"], "seal_job"),
        ):
            if wanted and calls.status(row["id"]) not in FINAL:
                calls.do(f"select pyjobs.{call}(%s)", row["id"])
    for passes in ("2 hours", "2 hours", "100 years", None):
        while batches := calls.rows(
            "select * from pyjobs.claim_next_job(%s, %s, 500)", worker, queues
        ):
            record_all(calls, batches)
        if passes is not None:
            calls.pass_time(passes)
            calls.rows("select * from pyjobs.reap()")
    return [
        f"job {row['id']} ({row['name']}) is {row['status']}: {calls.findings(row['id'])}"
        for row in calls.rows("select id, name, status from pyjobs.job order by id")
        if row["status"] not in FINAL
    ]


def record_all(calls: Calls, batches: list[dict[str, Any]]) -> None:
    """At once, and with the application's own rows."""
    ids = [batch["batch_id"] for batch in batches]
    epochs = [batch["lease_epoch"] for batch in batches]
    calls.do("begin")
    calls.do(
        "insert into public.result select * from unnest(%s::bigint[], %s::bigint[], %s::int[])",
        ids,
        epochs,
        [len(batch["items"]) for batch in batches],
    )
    outcomes = calls.rows("select * from pyjobs.record_batches(%s, %s)", ids, epochs)
    assert {row["outcome"] for row in outcomes} == {"recorded"}
    calls.do("commit")
