"""Retrying a big job.

`retry_job` of a job of so many batches that was ended by force, which gives the next run rows of
its own, against COPY of the same rows into a table like the ledger, indexes and all.
"""

from __future__ import annotations

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
UNITS = {"time": "s"}
GOALS = [Goal("retry / COPY of the same rows", "time", "retry", "COPY", at_most=1.5)]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def template(bench: Bench) -> str:
        def build(url: str) -> None:
            with bench.connect(url) as conn:
                job = fill.big_job(conn, size.batches)
                conn.execute("select pyjobs.finalize_job(%s, 'FAILURE', 'bench')", [job])

        return bench.template(f"{size.batches} batches ended", build)

    def retry(bench: Bench) -> Measured:
        with bench.database(template(bench)) as url, bench.connect(url) as conn:
            job = fill.one(conn, "select id from pyjobs.job")
            began = perf_counter()
            conn.execute("select pyjobs.retry_job(%s)", [job])
            return Measured({"time": perf_counter() - began})

    def copy(bench: Bench) -> Measured:
        with bench.database(template(bench)) as url, bench.connect(url) as conn:
            conn.execute("create table bare.copied (like pyjobs_internal.batch including all)")
            with conn.cursor().copy("copy (select * from pyjobs_internal.batch) to stdout") as out:
                rows = b"".join(bytes(block) for block in out)
            began = perf_counter()
            with conn.cursor().copy("copy bare.copied from stdin") as target:
                target.write(rows)
            return Measured({"time": perf_counter() - began})

    return {"retry": retry, "COPY": copy}
