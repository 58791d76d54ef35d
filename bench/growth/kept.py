"""History kept.

So many finished batches are kept, in jobs of 100,000; then 16 sessions record and claim on a new
job. The limit is one guarded one-row update by primary key in a bare table that keeps as many rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill, growth
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED
from bench.workloads.record import UPDATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    kept: tuple[int, ...]
    batches: int  # of the new job
    seconds: int
    sessions: int = 16


#: Batches of each of the finished jobs.
JOB = 100_000

SIZES = {
    "smoke": Size((100, 2_000), 20_000, 1),
    "short": Size((1_000, 10_000, 100_000), 60_000, 4),
    "long": Size((1_000, 10_000, 100_000, 1_000_000, 10_000_000), 400_000, 20),
}
ROUNDS = {"short": 1}
AXIS = "finished batches kept"
UNITS = {"rate": "batches/s", "p99": "ms"}
GOALS: list[Goal] = []
BENDS = """
Level, but for what the server itself loses with tables that no longer fit into the processor's
cache: indexes of open batches are partial, and those of all batches grow a level for each
hundredfold.
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def job(bench: Bench, kept: int) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                for start in range(0, kept, JOB):
                    fill.work_off(conn, fill.big_job(conn, min(JOB, kept - start)))
                number = fill.big_job(conn, size.batches)
                fill.settle(conn)
            load = bench.load(
                url,
                FUSED,
                sessions=size.sessions,
                seconds=size.seconds,
                variables={"job": number, "batch_id": 0, "lease_epoch": 0},
            )
        return Measured({"rate": load.rate, "p99": load.p99})

    def update(bench: Bench, kept: int) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                conn.execute(
                    "insert into bare.batch select generate_series(1, %s)",
                    [kept + size.batches * 4],
                )
                fill.settle(conn)
            load = bench.load(
                url,
                UPDATE,
                sessions=size.sessions,
                seconds=size.seconds,
                variables={"i": -1, "low": kept, "sessions": size.sessions},
            )
        return Measured({"rate": load.rate, "p99": load.p99})

    return growth.sides(size.kept, {growth.PYJOBS: job, growth.LIMIT: update})
