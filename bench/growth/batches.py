"""Batches a job.

As many jobs as make up the same number of batches, of 100 batches each, of 1,000, and so on to one
of them all; 16 sessions record and claim, and ask for another job where theirs has no more. Jobs
larger than what is worked off in the time are measured at their beginning. The limit is one guarded
one-row update by primary key in a bare table of as many rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill, growth
from bench.workload import Goal, Measured
from bench.workloads.record import UPDATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    batches: tuple[int, ...]  # of each job
    least: int  # batches altogether, at least
    seconds: int
    sessions: int = 16


SIZES = {
    "smoke": Size((100, 1_000), 20_000, 1),
    "short": Size((100, 1_000, 10_000, 100_000, 1_000_000), 50_000, 4),
    "long": Size((100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000), 400_000, 20),
}
ROUNDS = {"short": 1}
AXIS = "batches a job"
UNITS = {"rate": "batches/s", "p99": "ms"}
GOALS: list[Goal] = []
BENDS = """
Level: neither a claim nor a record looks at more of a job than a few pages. Jobs of a hundred
batches pay for a claim of a next job and for an end with each hundred, and towards its end the
sessions look for another job one after the other.
"""

# Of any job, where the session has none at the moment. Null is 0: nothing more of this job.
FUSED = r"""
\if :batch_id = 0
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.claim_next_job('w' || :client_id, '{bench}') \gset
\else
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.record_and_claim(:batch_id, :lease_epoch, 'w' || :client_id) \gset
\endif
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def jobs(bench: Bench, batches: int) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                number = max(1, size.least // batches)
                if number == 1:
                    fill.big_job(conn, batches)
                else:
                    fill.small_jobs(conn, number, batches)
                fill.settle(conn)
            load = bench.load(
                url,
                FUSED,
                sessions=size.sessions,
                seconds=size.seconds,
                variables={"batch_id": 0, "lease_epoch": 0},
            )
        return Measured({"rate": load.rate, "p99": load.p99})

    def update(bench: Bench, batches: int) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                conn.execute(
                    "insert into bare.batch select generate_series(1, %s)",
                    [max(batches, size.least * 4)],
                )
                fill.settle(conn)
            load = bench.load(
                url,
                UPDATE,
                sessions=size.sessions,
                seconds=size.seconds,
                variables={"i": -1, "low": 1, "sessions": size.sessions},
            )
        return Measured({"rate": load.rate, "p99": load.p99})

    return growth.sides(size.batches, {growth.PYJOBS: jobs, growth.LIMIT: update})
