"""What a batch costs the server.

From enqueueing to the end: bytes of write-ahead log, bytes on disk of what is kept afterwards, and
processor time of all of the server's processes. The figures that docs/capacity.md reckons with. Of
one big job, recorded and claimed one by one by 8 sessions; of the same a hundred a call by one
session; and of jobs of one batch, a hundred a call. A checkpoint lies before it and none within, so
that the whole pages that follow each checkpoint in the log are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import fill
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    batches: int
    sessions: int = 8


SIZES = {
    "smoke": Size(batches=1_600),
    "short": Size(batches=20_000),
    "long": Size(batches=200_000),
}
ROUNDS = {"short": 2}
UNITS = {
    "log": "bytes/batch",
    "log, enqueueing": "bytes/batch",
    "disk": "bytes/batch",
    "CPU": "µs/batch",
    "CPU, enqueueing": "µs/batch",
}
GOALS: list[Goal] = []

BY_HUNDREDS = """
with c as (select array_agg(batch_id) ids, array_agg(lease_epoch) epochs from pyjobs.{claim})
select count(r.batch_id) from c, pyjobs.record_batches(c.ids, c.epochs) r where c.ids is not null
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def measure(
        enqueue: Callable[[Connection[Any]], int],
        work: Callable[[Bench, str, Connection[Any], int], None],
    ) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            with bench.database() as url, bench.connect(url) as conn:
                room, log, used = fill.size(conn), fill.wal(conn), bench.cpu_seconds()
                job = enqueue(conn)
                log_in, used_in = fill.wal(conn), bench.cpu_seconds()
                work(bench, url, conn, job)
                log_end, used_end = fill.wal(conn), bench.cpu_seconds()
                fill.settle(conn)
                room_end = fill.size(conn)
            each = size.batches
            return Measured(
                {
                    "log": (log_end - log) / each,
                    "log, enqueueing": (log_in - log) / each,
                    "disk": (room_end - room) / each,
                    "CPU": (used_end - used) / each * 1e6,
                    "CPU, enqueueing": (used_in - used) / each * 1e6,
                }
            )

        return run

    def one_by_one(bench: Bench, url: str, _: Connection[Any], job: int) -> None:
        variables = {"job": job, "batch_id": 0, "lease_epoch": 0}
        each = size.batches // size.sessions
        bench.load(url, FUSED, sessions=size.sessions, transactions=each, variables=variables)

    def by_hundreds(_: Bench, __: str, conn: Connection[Any], job: int) -> None:
        claim = f"claim_next_batch({job}, 'w', 100)" if job else "claim_jobs('w', '{bench}', 100)"
        while fill.one(conn, BY_HUNDREDS.format(claim=claim)):
            pass

    def small(conn: Connection[Any]) -> int:
        fill.small_jobs(conn, size.batches)
        return 0

    def big(conn: Connection[Any]) -> int:
        return fill.big_job(conn, size.batches)

    return {
        "one big job, one by one": measure(big, one_by_one),
        "one big job, 100 a call": measure(big, by_hundreds),
        "jobs of one batch, 100 a call": measure(small, by_hundreds),
    }
