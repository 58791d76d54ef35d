"""Recording on one big job.

All batches of one job are leased beforehand; 16 sessions record them, one call and one commit
each, until the job is done. Beside it, at the same sessions: the same one-row guarded update by
primary key in a bare table, which is the limit of what a commit of one row can do; that update in a
function which then looks for another open row, the least that can end a job without a counter; and
the usual way to count, a ledger row and one hot counter in one function. The job's last tenth is
held against its first: recording must not slow down as the ledger fills.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    batches: int  # of the one job
    bare: int  # transactions of the sides beside it
    sessions: int = 16


SIZES = {
    "smoke": Size(batches=2_000, bare=2_000),
    "short": Size(batches=60_000, bare=60_000),
    "long": Size(batches=1_000_000, bare=300_000),
}
UNITS = {"rate": "records/s", "p50": "ms", "p99": "ms", "last / first tenth": "ratio"}
GOALS = [
    Goal("record / bare guarded update", "rate", "pyjobs", "bare update", at_least=0.9),
    Goal("record / ledger row and hot counter", "rate", "pyjobs", "hot counter", at_least=4),
    Goal("last tenth / first tenth of the job", "last / first tenth", "pyjobs", at_least=0.95),
]

RECORD = r"""
\set i :i + 1
\set id :low + :i * :sessions + :client_id
select * from pyjobs.record_batch(:id, 1);
"""
UPDATE = r"""
\set i :i + 1
\set id :low + :i * :sessions + :client_id
update bare.batch set state = 'recorded', closed_at = clock_timestamp()
where id = :id and epoch = 1 and state = 'leased';
"""
LOOK = r"""
\set i :i + 1
\set id :low + :i * :sessions + :client_id
select bare.record_and_look(:id);
"""
HOT = r"""
\set i :i + 1
\set id :low + :i * :sessions + :client_id
select bare.record_hot(:id);
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def run(bench: Bench, url: str, script: str, low: int, transactions: int) -> Measured:
        load = bench.load(
            url,
            script,
            sessions=size.sessions,
            transactions=transactions // size.sessions,
            variables={"i": -1, "low": low, "sessions": size.sessions},
        )
        figures = {
            "rate": load.rate,
            "p50": load.p50,
            "p99": load.p99,
            "last / first tenth": load.level(),
        }
        return Measured(figures, {"records a second over time": load.over_time()})

    def job(bench: Bench) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                job_id = fill.big_job(conn, size.batches)
                low, count = fill.lease_all(conn, job_id)
                fill.settle(conn)
            return run(bench, url, RECORD, low, count)

    def bare(table: str, script: str) -> Callable[[Bench], Measured]:
        def update(bench: Bench) -> Measured:
            with bench.database() as url:
                with bench.connect(url) as conn:
                    insert = f"insert into {table} select generate_series(1, %s)"
                    conn.execute(insert.encode(), [size.batches])
                    fill.settle(conn)
                return run(bench, url, script, 1, min(size.bare, size.batches))

        return update

    def hot(bench: Bench) -> Measured:
        with bench.database() as url:
            return run(bench, url, HOT, 1, size.bare // 4)

    return {
        "pyjobs": job,
        "bare update": bare("bare.batch", UPDATE),
        "bare update and look": bare("bare.looked", LOOK),
        "hot counter": hot,
    }
