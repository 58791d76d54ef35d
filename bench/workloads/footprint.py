"""Write-ahead log and disk that a job takes.

No-op jobs are enqueued in bulk and worked off by each system's worker; then the bytes of WAL
written since, and by how much the database has grown, are divided by the number of jobs.
Systems that keep finished jobs are set to keep them, as they do by default; pgqueuer keeps its log
of them, pgmq its archive. Bare PL/pgSQL keeps nothing, and is beside the others only to show the
least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import contest, fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    jobs: int


SIZES = {
    "smoke": Size(jobs=100),
    "short": Size(jobs=1_000),
    "long": Size(jobs=20_000),
}
ROUNDS = {"short": 1, "long": 3}
UNITS = {"WAL": "bytes/job", "disk": "bytes/job"}
KEEPERS = [s.name for s in contest.SYSTEMS if s.history and s.name != "pyjobs"]
GOALS = [
    Goal(f"{figure}: pyjobs / {name}", figure, "pyjobs", name, at_most=1)
    for figure in ("WAL", "disk")
    for name in KEEPERS
]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def weigh(system: contest.System) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            with contest.installed(bench, system) as url, bench.connect(url) as conn:
                fill.settle(conn)
                written, taken = fill.wal(conn), fill.size(conn)
                contest.call(bench, system, "enqueue", url, jobs=size.jobs)
                contest.call(
                    bench, system, "work", url, jobs=size.jobs, setting=system.settings[-1]
                )
                written, taken = fill.wal(conn) - written, fill.size(conn) - taken
            return Measured({"WAL": written / size.jobs, "disk": taken / size.jobs})

        return run

    return {system.name: weigh(system) for system in contest.SYSTEMS}
