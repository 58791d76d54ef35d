"""Claiming however much waits.

The time of one claim, with few and with many batches waiting in one job, and with few and with many
jobs waiting in a queue. Each claim is recorded and replaced by as much new work, so that the
number stays; only the claim itself, with its commit, is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from bench import fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    batches: tuple[int, int, int]
    jobs: tuple[int, int, int]
    claims: int


SIZES = {
    "smoke": Size(batches=(10, 100, 1_000), jobs=(1, 10, 100), claims=20),
    "short": Size(batches=(10, 10_000, 100_000), jobs=(1, 1_000, 10_000), claims=600),
    "long": Size(batches=(10, 10_000, 1_000_000), jobs=(1, 1_000, 100_000), claims=5_000),
}
UNITS = {"claim": "ms", "p99": "ms"}
GOALS = [
    Goal("many batches waiting / few", "claim", "batches: many", "batches: few", at_most=1.2),
    Goal("some batches waiting / few", "claim", "batches: some", "batches: few", at_most=1.2),
    Goal("many jobs waiting / one", "claim", "jobs: many", "jobs: one", at_most=1.2),
    Goal("some jobs waiting / one", "claim", "jobs: some", "jobs: one", at_most=1.2),
]

RECORD = "select job_id from pyjobs.record_batch(%s, %s)"


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def measure(bench: Bench, template: str, claim: bytes, refill: bytes) -> Measured:
        times = []
        with bench.database(template) as url, bench.connect(url) as conn:
            job = fill.one(conn, "select min(id) from pyjobs.job")
            for _ in range(size.claims):
                began = perf_counter()
                row = conn.execute(claim, {"job": job}).fetchone()
                times.append(perf_counter() - began)
                assert row is not None
                conn.execute(RECORD, row)
                conn.execute(refill, {"job": job})
        times.sort()
        return Measured(
            {"claim": median(times) * 1000, "p99": times[int(len(times) * 0.99)] * 1000}
        )

    def batches(waiting: int) -> Callable[[Bench], Measured]:
        def build(bench: Bench) -> Callable[[str], None]:
            def run(url: str) -> None:
                with bench.connect(url) as conn:
                    fill.big_job(conn, waiting, sealed=False)

            return run

        return lambda bench: measure(
            bench,
            bench.template(f"{waiting} batches waiting", build(bench)),
            b"select batch_id, lease_epoch from pyjobs.claim_next_batch(%(job)s, 'bench')",
            b"select pyjobs.add_items(%(job)s, '[\"image.png\"]')",
        )

    def jobs(waiting: int) -> Callable[[Bench], Measured]:
        def build(bench: Bench) -> Callable[[str], None]:
            def run(url: str) -> None:
                with bench.connect(url) as conn:
                    fill.small_jobs(conn, waiting)

            return run

        return lambda bench: measure(
            bench,
            bench.template(f"{waiting} jobs waiting", build(bench)),
            b"select batch_id, lease_epoch from pyjobs.claim_next_job('bench', '{bench}')",
            b"select pyjobs.enqueue_job('bench')",
        )

    return {
        "batches: few": batches(size.batches[0]),
        "batches: some": batches(size.batches[1]),
        "batches: many": batches(size.batches[2]),
        "jobs: one": jobs(size.jobs[0]),
        "jobs: some": jobs(size.jobs[1]),
        "jobs: many": jobs(size.jobs[2]),
    }
