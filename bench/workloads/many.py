"""Many small jobs against one big one.

16 sessions claim a batch and record it, in a transaction each: over jobs of three batches, by
`claim_next_job`, and over one job of as many batches, by `claim_next_batch`. That the small jobs
begin and end may cost a fifth. Jobs take turns, so that of jobs that wait together the first third
of the work ends none and the last third ends all; whether they slow down is told by fewer, each of
which is replaced by a new one when it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from bench import fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.pgbench import Load
    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    jobs: int  # of three batches each
    replaced: int = 100  # that wait at any time, where they are replaced
    sessions: int = 16


SIZES = {
    "smoke": Size(jobs=200),
    "short": Size(jobs=4_000),
    "long": Size(jobs=10_000),
}
BATCHES = 3
UNITS = {"rate": "batches/s", "p99": "ms", "last / first tenth": "ratio"}
GOALS = [
    Goal("jobs of three batches / one big job", "rate", "small jobs", "one big job", at_least=0.8),
    Goal("last tenth / first tenth", "last / first tenth", "replaced", at_least=0.9),
]

# A claim may find nothing at the very end, while others hold the last ones.
SMALL = r"""
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.claim_next_job('w' || :client_id, '{bench}') \gset
\if :batch_id > 0
select * from pyjobs.record_batch(:batch_id, :lease_epoch);
\endif
"""
REPLACED = Template(r"""
\set job_done 0
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.claim_next_job('w' || :client_id, '{$queue}') \gset
\if :batch_id > 0
select job_done::int from pyjobs.record_batch(:batch_id, :lease_epoch) \gset
\endif
\if :job_done = 1
select pyjobs.$enqueue;
\endif
""")
BIG = r"""
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.claim_next_batch(:job, 'w' || :client_id) \gset
\if :batch_id > 0
select * from pyjobs.record_batch(:batch_id, :lease_epoch);
\endif
"""


def replaced(queue: str, enqueue: str) -> str:
    """The script of a session that works a queue off, and makes a job for each that it ends."""
    return REPLACED.substitute(queue=queue, enqueue=enqueue)


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    batches = size.jobs * BATCHES

    def figures(load: Load) -> Measured:
        return Measured(
            {"rate": load.rate, "p99": load.p99, "last / first tenth": load.level()},
            {"batches a second over time": load.over_time()},
        )

    def small(jobs: int, script: str) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            with bench.database() as url:
                with bench.connect(url) as conn:
                    fill.small_jobs(conn, jobs, BATCHES)
                    fill.settle(conn)
                return figures(
                    bench.load(
                        url, script, sessions=size.sessions, transactions=batches // size.sessions
                    )
                )

        return run

    def big(bench: Bench) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                job = fill.big_job(conn, batches)
                fill.settle(conn)
            return figures(
                bench.load(
                    url,
                    BIG,
                    sessions=size.sessions,
                    transactions=batches // size.sessions,
                    variables={"job": job},
                )
            )

    return {
        "small jobs": small(size.jobs, SMALL),
        "replaced": small(
            size.replaced, replaced(fill.QUEUE, f"enqueue_job('{fill.QUEUE}', '[1, 2, 3]')")
        ),
        "one big job": big,
    }
