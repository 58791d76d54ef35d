"""Enqueueing one job.

One process, one job a call and a commit: `Client.enqueue_job` with some fifty bytes of params,
against one bare insert of the same bytes through psycopg, and the bare queue's insert with NOTIFY.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb

import pyjobs
from bench import fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    jobs: int


SIZES = {
    "smoke": Size(jobs=200),
    "short": Size(jobs=3_000),
    "long": Size(jobs=30_000),
}
UNITS = {"rate": "jobs/s"}
GOALS = [Goal("enqueue / bare insert, through Python", "rate", "pyjobs", "insert", at_least=0.8)]
PARAMS = {"image": "survey/2026/plate-000000001/image.png"}


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def client(bench: Bench) -> Measured:
        with bench.database() as url, pyjobs.Client(url, prepare_threshold=5) as api:
            api.active_workers()  # connects
            began = perf_counter()
            for _ in range(size.jobs):
                api.enqueue_job(fill.QUEUE, params=PARAMS)
            return Measured({"rate": size.jobs / (perf_counter() - began)})

    def bare(statement: bytes) -> Callable[[Bench], Measured]:
        def insert(bench: Bench) -> Measured:
            with bench.database() as url, bench.connect(url) as conn:
                conn.execute("select 1")
                began = perf_counter()
                for _ in range(size.jobs):
                    conn.execute(statement, [Jsonb(PARAMS)]).fetchone()
                return Measured({"rate": size.jobs / (perf_counter() - began)})

        return insert

    return {
        "pyjobs": client,
        "insert": bare(b"insert into bare.job (queue, params) values ('bench', %s) returning id"),
        "bare queue": bare(b"select bare.enqueue(%s)"),
    }
