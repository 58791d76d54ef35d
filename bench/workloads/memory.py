"""Memory of a worker that goes on and on.

A worker process works off no-op jobs, which are enqueued as it goes, and its resident memory is
looked at as their number grows: with lanes that claim one at a time, and with a hundred leased at
once, which makes ten times as many. A line through the second half of the points says how much each
job leaves behind. The smallest object takes 16 bytes, so a worker that keeps one for each job grows
by 16 kB in 1,000; what is less is the allocator's, which takes a page now and then until it has
enough: some 100 kB in all, after a few ten thousand jobs. So the lanes say something in the long
form alone. That goes far beyond, and draws the line out to 24 hours at the rate of the run: what
there would be then over what there is at the end. In the short form a single page would more than
double that figure.
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
    day: bool = False  # whether it is long enough to be drawn out to a day


SIZES = {"smoke": Size(seconds=4), "short": Size(seconds=10), "long": Size(seconds=600, day=True)}
ROUNDS = {"short": 1, "long": 1}
UNITS = {
    "memory": "MB",
    "growth": "kB/1,000 jobs",
    "rate": "jobs/s",
    "after 24 hours / now": "ratio",
}
GOALS = [
    Goal(
        "memory after 24 hours / now", "after 24 hours / now", "threads", at_most=1.1, only="long"
    ),
    Goal("the same, asynchronous", "after 24 hours / now", "async", at_most=1.1, only="long"),
    Goal("growth, kB in 1,000 jobs, a hundred at once", "growth", "threads, 100", at_most=16),
    Goal("the same, asynchronous", "growth", "async, 100", at_most=16),
]
DAY = 24 * 3600
#: Jobs that wait at least, and that are added when there are fewer.
STOCK = 10_000


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

                def handled() -> int:
                    """How many jobs are done; adds some where few are left."""
                    nonlocal enqueued
                    waiting = fill.one(
                        conn, "select count(*) from pyjobs.job where finished_at is null"
                    )
                    done = enqueued - int(waiting)
                    if waiting < STOCK:
                        fill.small_jobs(conn, STOCK)
                        enqueued += STOCK
                    return done

                handled()
                with contest.start(
                    bench, system, "work", url, jobs=1_000_000_000, setting=setting
                ) as worker:
                    worker.ready()
                    began = monotonic()
                    while monotonic() - began < size.seconds:
                        points.append((handled(), resident(worker.process.pid)))
                        sleep(min(2.0, size.seconds / 40))
                    rate = points[-1][0] / (monotonic() - began)
            late = points[len(points) // 2 :]
            slope, _ = linear_regression([x for x, _ in late], [y for _, y in late])
            now = late[-1][1]
            figures = {"memory": now, "growth": slope * 1e6, "rate": rate}
            if size.day:
                figures["after 24 hours / now"] = (now + slope * rate * DAY) / now
            return Measured(figures, {"resident memory over jobs, MB": points})

        return run

    return {
        "threads": watch(8),
        "threads, 100": watch(100),
        "async": watch(-16),
        "async, 100": watch(-100),
    }
