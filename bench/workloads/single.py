"""Single jobs, one at a time.

One session works off jobs of one batch, one after the other: with `claim_next_job` and
`record_batch`, each in a transaction of its own; and as a worker that is never without work does,
with `record_and_claim` and its `queues`, which record one and claim the next in one. Against the
bare queue's claim of 1 and delete, each in a transaction of its own. Once by pgbench, which shows
what the server does, and once through Python, which adds the client's share to both.
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


SIZES = {
    "smoke": Size(jobs=200),
    "short": Size(jobs=3_000),
    "long": Size(jobs=30_000),
}
UNITS = {"rate": "jobs/s"}
GOALS = [
    Goal("one at a time, in SQL / bare PL/pgSQL", "rate", "fused, SQL", "bare, SQL", at_least=0.9),
    Goal("the same through Python", "rate", "fused, Python", "bare, Python", at_least=0.9),
]

JOBS = r"""
select batch_id, lease_epoch from pyjobs.claim_next_job('w', '{bench}') \gset
select * from pyjobs.record_batch(:batch_id, :lease_epoch);
"""
# The first time there is nothing to record.
FUSED = r"""
\if :batch_id > 0
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.record_and_claim(:batch_id, :lease_epoch, 'w', queues => '{bench}') \gset
\else
select batch_id, lease_epoch from pyjobs.claim_next_job('w', '{bench}') \gset
\endif
"""
BARE = r"""
select id from bare.claim(1) \gset
select bare.done(array[:id]::bigint[]);
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def fill_jobs(bench: Bench, url: str) -> None:
        with bench.connect(url) as conn:
            fill.small_jobs(conn, size.jobs)
            fill.settle(conn)

    def fill_bare(bench: Bench, url: str) -> None:
        with bench.connect(url) as conn:
            conn.execute(
                "insert into bare.queue (payload) select jsonb_build_object('image', n)"
                " from generate_series(1, %s) n",
                [size.jobs],
            )
            fill.settle(conn)

    def in_sql(
        fill_all: Callable[[Bench, str], None], script: str, transactions: int, **variables: int
    ) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            with bench.database() as url:
                fill_all(bench, url)
                load = bench.load(
                    url, script, sessions=1, transactions=transactions, variables=variables
                )
            return Measured({"rate": load.rate})

        return run

    def in_python(bench: Bench) -> Measured:
        with bench.database() as url:
            fill_jobs(bench, url)
            with pyjobs.Client(url, prepare_threshold=5) as api:
                api.active_workers()  # connects
                done, began = 0, perf_counter()
                while claims := api.claim_next_job("w", [fill.QUEUE]):
                    api.record_batch(claims[0].batch_id, claims[0].lease_epoch)
                    done += 1
                took = perf_counter() - began
        return Measured({"rate": done / took})

    def fused_in_python(bench: Bench) -> Measured:
        with bench.database() as url:
            fill_jobs(bench, url)
            with pyjobs.Client(url, prepare_threshold=5) as api:
                api.active_workers()  # connects
                done, began = 0, perf_counter()
                claims = tuple(api.claim_next_job("w", [fill.QUEUE]))
                while claims:
                    claims = api.record_and_claim(
                        claims[0].batch_id, claims[0].lease_epoch, "w", queues=[fill.QUEUE]
                    ).claims
                    done += 1
                took = perf_counter() - began
        return Measured({"rate": done / took})

    def in_bare_python(bench: Bench) -> Measured:
        with bench.database() as url:
            fill_bare(bench, url)
            with bench.connect(url) as conn:
                done, began = 0, perf_counter()
                while row := conn.execute("select id, payload from bare.claim(1)").fetchone():
                    conn.execute("select bare.done(%s)", [[row[0]]])
                    done += 1
                took = perf_counter() - began
        return Measured({"rate": done / took})

    return {
        "pyjobs, SQL": in_sql(fill_jobs, JOBS, size.jobs),
        "fused, SQL": in_sql(fill_jobs, FUSED, size.jobs + 1, batch_id=0, lease_epoch=0),
        "bare, SQL": in_sql(fill_bare, BARE, size.jobs),
        "pyjobs, Python": in_python,
        "fused, Python": fused_in_python,
        "bare, Python": in_bare_python,
    }
