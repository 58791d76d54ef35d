"""Plain jobs through the Python client, a hundred a claim.

One process and one connection: `claim_jobs` of 100 and `record_batches` of what came, against bare
PL/pgSQL through psycopg that claims 100 with SKIP LOCKED and deletes them. The bare queue keeps no
history, no counts, no attempts, and lets anybody delete anybody's job.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import pyjobs
from bench import fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    jobs: int
    at_once: int = 100


SIZES = {
    "smoke": Size(jobs=1_000),
    "short": Size(jobs=20_000),
    "long": Size(jobs=200_000),
}
UNITS = {"rate": "jobs/s"}
GOALS = [Goal("jobs, 100 a call / bare PL/pgSQL", "rate", "pyjobs", "bare", at_least=0.9)]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def client(bench: Bench) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                fill.small_jobs(conn, size.jobs)
                fill.settle(conn)
            with pyjobs.Client(url, prepare_threshold=5) as api:
                api.active_workers()  # connects
                done, began = 0, perf_counter()
                while claims := api.claim_jobs("bench", [fill.QUEUE], size.at_once):
                    api.record_batches(
                        [claim.batch_id for claim in claims],
                        [claim.lease_epoch for claim in claims],
                    )
                    done += len(claims)
                took = perf_counter() - began
        assert done == size.jobs
        return Measured({"rate": done / took})

    def bare(bench: Bench) -> Measured:
        with bench.database() as url, bench.connect(url) as conn:
            conn.execute(
                "insert into bare.queue (payload) select jsonb_build_object('image', n)"
                " from generate_series(1, %s) n",
                [size.jobs],
            )
            fill.settle(conn)
            done, began = 0, perf_counter()
            while rows := conn.execute(
                "select id, payload from bare.claim(%s)", [size.at_once]
            ).fetchall():
                conn.execute("select bare.done(%s)", [[row[0] for row in rows]])
                done += len(rows)
            took = perf_counter() - began
        assert done == size.jobs
        return Measured({"rate": done / took})

    return {"pyjobs": client, "bare": bare}
