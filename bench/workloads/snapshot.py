"""Under an old snapshot.

A transaction, somebody's report say, holds the oldest snapshot while 16 sessions claim and record:
no dead row or index entry can be removed, and queues that look for work from the head of an index
slow down within minutes. One big job; small jobs, of which each that ends is replaced by a new
one; and both at once, half the sessions each. The last tenth of the time is held against the first.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.pgbench import Load
    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    seconds: int
    batches: int  # of the big job: more than can be recorded in the time
    jobs: int  # small ones waiting, all the time
    sessions: int = 16


SIZES = {
    "smoke": Size(seconds=2, batches=20_000, jobs=100),
    "short": Size(seconds=15, batches=250_000, jobs=2_000),
    "long": Size(seconds=600, batches=8_000_000, jobs=10_000),
}
ROUNDS = {"short": 1, "long": 1}
UNITS = {"rate": "batches/s", "last / first": "ratio", "last / first, big": "ratio",
         "last / first, small": "ratio"}  # fmt: skip
GOALS = [
    Goal("one big job: last tenth / first", "last / first", "one big job", at_least=0.9),
    Goal("small jobs: last tenth / first", "last / first", "small jobs", at_least=0.9),
    Goal("both, the big job: last / first", "last / first, big", "both", at_least=0.9),
    Goal("both, small jobs: last / first", "last / first, small", "both", at_least=0.9),
]

SMALL = r"""
\set job_done 0
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.claim_next_job('w' || :client_id, '{small}') \gset
\if :batch_id > 0
select job_done::int from pyjobs.record_batch(:batch_id, :lease_epoch) \gset
\endif
\if :job_done = 1
select pyjobs.enqueue_job('small');
\endif
"""


def over(load: Load) -> float:
    """The rate in the last tenth of the time over that in the first."""
    rates = [rate for _, rate in load.over_time(10)]
    return rates[-1] / rates[0]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def measure(bench: Bench, *, big: bool, small: bool) -> Measured:
        each = size.sessions // 2 if big and small else size.sessions
        with bench.database() as url, bench.connect(url) as conn:
            scripts: dict[str, tuple[str, dict[str, int]]] = {}
            if big:
                job = fill.big_job(conn, size.batches)
                variables = {"job": job, "batch_id": 0, "lease_epoch": 0}
                scripts["big"] = (FUSED, variables)
            if small:
                conn.execute(
                    "select count(pyjobs.enqueue_job('small')) from generate_series(1, %s)",
                    [size.jobs],
                )
                scripts["small"] = (SMALL, {})
            fill.settle(conn)
            with bench.connect(url) as reader, ExitStack() as stack:
                reader.execute("begin isolation level repeatable read")
                reader.execute("select count(*) from pyjobs_internal.job_state")
                running = {
                    name: stack.enter_context(
                        bench.start_load(
                            url,
                            script,
                            sessions=each,
                            seconds=size.seconds,
                            variables=variables,
                        )
                    )
                    for name, (script, variables) in scripts.items()
                }
                loads = {name: load.finish() for name, load in running.items()}
                reader.execute("rollback")
        figures = {"rate": sum(load.rate for load in loads.values())}
        for name, load in loads.items():
            figures["last / first" + (f", {name}" if big and small else "")] = over(load)
        return Measured(
            figures,
            {
                f"batches a second over time, {name}": load.over_time()
                for name, load in loads.items()
            },
        )

    return {
        "one big job": lambda bench: measure(bench, big=True, small=False),
        "small jobs": lambda bench: measure(bench, big=False, small=True),
        "both": lambda bench: measure(bench, big=True, small=True),
    }
