"""Memory of a worker that goes on and on.

A worker process works off no-op jobs, which are enqueued as it goes, and its resident memory is
looked at now and then. A line through the second half of the points is drawn out to 24 hours; the
figure is what it would be then over what it is at the end. Only the long form runs long enough for
that to mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression
from time import monotonic, sleep
from typing import TYPE_CHECKING

from bench import contest, fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    seconds: int


SIZES = {"smoke": Size(seconds=4), "short": Size(seconds=12), "long": Size(seconds=600)}
ROUNDS = {"short": 1, "long": 1}
UNITS = {"memory": "MB", "growth": "kB/1,000 jobs", "after 24 hours / now": "ratio"}
GOALS = [
    Goal(
        "memory after 24 hours / now", "after 24 hours / now", "threads", at_most=1.1, only="long"
    ),
    Goal("the same, asynchronous", "after 24 hours / now", "async", at_most=1.1, only="long"),
]
DAY = 24 * 3600
#: Jobs that wait at least, and that are added when there are fewer.
STOCK = 2_000


def resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise ValueError(f"no VmRSS for process {pid}")


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def watch(setting: int) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            points: list[tuple[float, float]] = []
            system = contest.BY_NAME["pyjobs"]
            with bench.database(tcp=True) as url, bench.connect(url) as conn:
                enqueued = 0

                def stock_up() -> None:
                    nonlocal enqueued
                    waiting = fill.one(
                        conn, "select count(*) from pyjobs.job where finished_at is null"
                    )
                    if waiting < STOCK:
                        fill.small_jobs(conn, STOCK)
                        enqueued += STOCK

                stock_up()
                with contest.start(
                    bench, system, "work", url, jobs=1_000_000_000, setting=setting
                ) as worker:
                    worker.ready()
                    began = monotonic()
                    while (now := monotonic() - began) < size.seconds:
                        points.append((now, resident(worker.process.pid)))
                        stock_up()
                        sleep(min(2.0, size.seconds / 20))
            late = points[len(points) // 2 :]
            slope, _ = linear_regression([x for x, _ in late], [y for _, y in late])
            now_mb = late[-1][1]
            return Measured(
                {
                    "memory": now_mb,
                    "growth": slope * size.seconds * 1000 / (enqueued / 1000),
                    "after 24 hours / now": (now_mb + slope * DAY) / now_mb,
                },
                {"resident memory over time, MB": points},
            )

        return run

    return {"threads": watch(8), "async": watch(-16)}
