"""Recording and claiming in one call, on one big job.

16 sessions, each with `record_and_claim`: one round trip and one commit record a batch and lease
the next. Beside it one guarded one-row update by primary key, although the call writes two rows
and finds one of them by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill
from bench.workload import Goal, Measured
from bench.workloads.record import UPDATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    batches: int
    bare: int
    sessions: int = 16


SIZES = {
    "smoke": Size(batches=2_000, bare=2_000),
    "short": Size(batches=40_000, bare=60_000),
    "long": Size(batches=1_000_000, bare=300_000),
}
UNITS = {"rate": "batches/s", "p50": "ms", "p99": "ms", "last / first tenth": "ratio"}
GOALS = [
    Goal("record and claim / bare guarded update", "rate", "pyjobs", "bare update", at_least=0.6)
]

# The first call of a session claims only.
FUSED = r"""
\if :batch_id = 0
select batch_id, lease_epoch from pyjobs.claim_next_batch(:job, 'w' || :client_id) \gset
\else
select batch_id, lease_epoch
from pyjobs.record_and_claim(:batch_id, :lease_epoch, 'w' || :client_id) \gset
\endif
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def job(bench: Bench) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                job_id = fill.big_job(conn, size.batches)
                fill.settle(conn)
            load = bench.load(
                url,
                FUSED,
                sessions=size.sessions,
                transactions=size.batches // size.sessions,
                variables={"job": job_id, "batch_id": 0, "lease_epoch": 0},
            )
        figures = {
            "rate": load.rate,
            "p50": load.p50,
            "p99": load.p99,
            "last / first tenth": load.level(),
        }
        return Measured(figures, {"batches a second over time": load.over_time()})

    def update(bench: Bench) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                conn.execute("insert into bare.batch select generate_series(1, %s)", [size.bare])
                fill.settle(conn)
            load = bench.load(
                url,
                UPDATE,
                sessions=size.sessions,
                transactions=size.bare // size.sessions,
                variables={"i": -1, "low": 1, "sessions": size.sessions},
            )
        return Measured({"rate": load.rate, "p50": load.p50, "p99": load.p99})

    return {"pyjobs": job, "bare update": update}
