"""Under an old snapshot.

A transaction, somebody's report say, holds the oldest snapshot while 16 sessions claim and record:
no dead row or index entry can be removed, and queues that look for work from the head of an index
slow down within minutes. One big job; small jobs, of which each that ends is replaced by a new
one; and both at once, half the sessions each. The last tenth of the time is held against the first.
Beside it the bare guarded update by primary key in a table without any other index, which no dead
row or entry can slow down: where its rate falls as well, the machine's did.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import fill
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED
from bench.workloads.many import replaced
from bench.workloads.record import UPDATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from bench.pgbench import Load
    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    seconds: int
    batches: int  # of the big job, and bare rows: more than can be recorded in the time
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

SMALL = replaced("small", "enqueue_job('small')")


def over(load: Load) -> float:
    """The rate in the last tenth of the time over that in the first."""
    rates = [rate for _, rate in load.over_time(10)]
    return rates[-1] / rates[0]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def fill_big(conn: Connection[Any]) -> dict[str, int]:
        return {"job": fill.big_job(conn, size.batches), "batch_id": 0, "lease_epoch": 0}

    def fill_small(conn: Connection[Any]) -> dict[str, int]:
        conn.execute(
            "select count(pyjobs.enqueue_job('small')) from generate_series(1, %s)", [size.jobs]
        )
        return {}

    def fill_bare(conn: Connection[Any]) -> dict[str, int]:
        rows = size.batches * 2
        conn.execute("insert into bare.batch select generate_series(1, %s)", [rows])
        return {"i": -1, "low": 1, "sessions": size.sessions}

    scripts = {
        "big": (FUSED, fill_big), "small": (SMALL, fill_small), "bare": (UPDATE, fill_bare)
    }  # fmt: skip

    def measure(bench: Bench, *loads: str) -> Measured:
        with bench.database() as url, bench.connect(url) as conn:
            variables = {name: scripts[name][1](conn) for name in loads}
            fill.settle(conn)
            with bench.connect(url) as reader, ExitStack() as stack:
                reader.execute("begin isolation level repeatable read")
                reader.execute("select count(*) from pyjobs_internal.job_state")
                running = {
                    name: stack.enter_context(
                        bench.start_load(
                            url,
                            scripts[name][0],
                            sessions=size.sessions // len(loads),
                            seconds=size.seconds,
                            variables=variables[name],
                        )
                    )
                    for name in loads
                }
                done = {name: load.finish() for name, load in running.items()}
                reader.execute("rollback")
        figures = {"rate": sum(load.rate for load in done.values())}
        for name, load in done.items():
            figures["last / first" + (f", {name}" if len(loads) > 1 else "")] = over(load)
        return Measured(
            figures,
            {
                f"batches a second over time, {name}": load.over_time()
                for name, load in done.items()
            },
        )

    return {
        "one big job": lambda bench: measure(bench, "big"),
        "small jobs": lambda bench: measure(bench, "small"),
        "both": lambda bench: measure(bench, "big", "small"),
        "bare update": lambda bench: measure(bench, "bare"),
    }
