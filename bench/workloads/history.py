"""Claiming and recording however much is kept.

A database that keeps many finished batches, and one that keeps few; then a new job is claimed and
recorded by 16 sessions with `record_and_claim`. The rate must not depend on the past.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    few: int  # finished batches kept
    many: int
    batches: int  # of the job that is measured
    sessions: int = 16


#: Batches of each of the finished jobs.
JOB = 100_000

SIZES = {
    "smoke": Size(few=100, many=2_000, batches=1_600),
    "short": Size(few=1_000, many=200_000, batches=20_000),
    "long": Size(few=1_000, many=10_000_000, batches=200_000),
}
UNITS = {"rate": "batches/s", "p99": "ms"}
GOALS = [Goal("few kept / many kept", "rate", "few kept", "many kept", at_most=1.2)]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def kept(finished: int) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            def build(url: str) -> None:
                with bench.connect(url) as conn:
                    for start in range(0, finished, JOB):
                        job = fill.big_job(conn, min(JOB, finished - start))
                        fill.work_off(conn, job)

            template = bench.template(f"{finished} batches finished", build)
            with bench.database(template) as url:
                with bench.connect(url) as conn:
                    job = fill.big_job(conn, size.batches)
                    fill.settle(conn)
                load = bench.load(
                    url,
                    FUSED,
                    sessions=size.sessions,
                    transactions=size.batches // size.sessions,
                    variables={"job": job, "batch_id": 0, "lease_epoch": 0},
                )
            return Measured({"rate": load.rate, "p99": load.p99})

        return run

    return {"few kept": kept(size.few), "many kept": kept(size.many)}
