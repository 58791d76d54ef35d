"""Enqueueing in bulk.

A job of so many items from one array, against COPY of the same bytes, prepared beforehand on both
sides, into a table with a primary key: as batches of one item, which is a row for each, and of
100. And as many one-batch jobs by `enqueue_jobs`, which has no goal: a job is more than a row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    items: int


SIZES = {
    "smoke": Size(items=2_000),
    "short": Size(items=100_000),
    "long": Size(items=1_000_000),
}
UNITS = {"time": "s"}
GOALS = [
    Goal("batches of one / COPY", "time", "batches of 1", "COPY, rows of 1", at_most=1.5),
    Goal("batches of 100 / COPY", "time", "batches of 100", "COPY, rows of 100", at_most=1.5),
]


def names(count: int) -> list[str]:
    return [f"survey/2026/plate-{n:09}/image.png" for n in range(count)]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def job(batch_size: int) -> Callable[[Bench], Measured]:
        def enqueue(bench: Bench) -> Measured:
            items = json.dumps(names(size.items))
            with bench.database() as url, bench.connect(url) as conn:
                began = perf_counter()
                conn.execute(
                    "select pyjobs.enqueue_job('bench', %s::jsonb, batch_size => %s)",
                    [items, batch_size],
                )
                return Measured({"time": perf_counter() - began})

        return enqueue

    def jobs(bench: Bench) -> Measured:
        params = json.dumps(names(size.items))
        with bench.database() as url, bench.connect(url) as conn:
            began = perf_counter()
            conn.execute("select cardinality(pyjobs.enqueue_jobs('bench', %s::jsonb))", [params])
            return Measured({"time": perf_counter() - began})

    def copy(row_size: int) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            items = names(size.items)
            rows = [
                json.dumps(items[n : n + row_size]) if row_size > 1 else json.dumps(items[n])
                for n in range(0, size.items, row_size)
            ]
            text = "".join(f"{n}\t{row}\n" for n, row in enumerate(rows)).encode()
            with bench.database() as url, bench.connect(url) as conn:
                began = perf_counter()
                with conn.cursor().copy("copy bare.item from stdin") as target:
                    target.write(text)
                return Measured({"time": perf_counter() - began})

        return run

    return {
        "batches of 1": job(1),
        "COPY, rows of 1": copy(1),
        "batches of 100": job(100),
        "COPY, rows of 100": copy(100),
        "one-batch jobs": jobs,
    }
