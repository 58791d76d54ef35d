"""Purging a big job.

The size of the database before a finished job of so many batches, with it, and after
`pyjobs purge --give-back`, which locks nobody out: what was taken must come back. Beside it, the
deletion alone, with what autovacuum does after it, and a truncate of a bare table that was filled
with the same rows.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from bench import fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    batches: int


SIZES = {
    "smoke": Size(batches=2_000),
    "short": Size(batches=100_000),
    "long": Size(batches=1_000_000),
}
ROUNDS = {"short": 2}
UNITS = {"time": "s", "with the job": "MB", "left over": "MB", "left over / taken": "ratio"}
GOALS = [
    Goal(
        "space not given back / space taken",
        "left over / taken",
        "pyjobs, given back",
        at_most=0.05,
    ),
]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def template(bench: Bench) -> str:
        def build(url: str) -> None:
            with bench.connect(url) as conn:
                fill.work_off(conn, fill.big_job(conn, size.batches))

        return bench.template(f"{size.batches} batches to purge", build)

    def empty(bench: Bench) -> int:
        with bench.database() as url, bench.connect(url) as conn:
            fill.settle(conn)
            return fill.size(conn)

    def measured(took: float, before: int, full: int, after: int) -> Measured:
        return Measured(
            {
                "time": took,
                "with the job": (full - before) / 1e6,
                "left over": (after - before) / 1e6,
                "left over / taken": (after - before) / (full - before),
            }
        )

    def purge(bench: Bench) -> Measured:
        before = empty(bench)
        with bench.database(template(bench)) as url, bench.connect(url) as conn:
            full = fill.size(conn)
            began = perf_counter()
            conn.execute("select pyjobs.purge_jobs('0')")
            took = perf_counter() - began
            fill.settle(conn)  # what autovacuum does after a while
            return measured(took, before, full, fill.size(conn))

    def give_back(bench: Bench) -> Measured:
        before = empty(bench)
        with bench.database(template(bench)) as url, bench.connect(url) as conn:
            full = fill.size(conn)
            command = [sys.executable, "-m", "pyjobs", "purge", "--older-than", "0", "--give-back"]
            began = perf_counter()
            subprocess.run([*command, "--database-url", url], check=True, capture_output=True)
            took = perf_counter() - began
            fill.settle(conn)
            return measured(took, before, full, fill.size(conn))

    def truncate(bench: Bench) -> Measured:
        with bench.database(template(bench)) as url, bench.connect(url) as conn:
            conn.execute("create table bare.copied (like pyjobs_internal.batch including all)")
            before = fill.size(conn)
            conn.execute("insert into bare.copied select * from pyjobs_internal.batch")
            full = fill.size(conn)
            began = perf_counter()
            conn.execute("truncate bare.copied")
            took = perf_counter() - began
            fill.settle(conn)
            return measured(took, before, full, fill.size(conn))

    return {"pyjobs": purge, "pyjobs, given back": give_back, "truncate": truncate}
