"""How soon a job is picked up.

One worker process that waits, and one producer that enqueues 30 jobs a second, one by one, at times
that do not depend on how fast it is. Measured from before the call of enqueue to the start of the
handler, on one clock. The jobs of the first second stand apart, as the longest that one of them
waited: they pay for connecting, and for the first call of each function in each session, of which
there are so few that only a short run has them among its worst percent. pyjobs, bare, pgqueuer, awa
and procrastinate are woken by NOTIFY; pgmq, absurd and DBOS poll.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import contest
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    jobs: int
    rate: int = 30  # a second


SIZES = {
    "smoke": Size(jobs=15),
    "short": Size(jobs=90),
    "long": Size(jobs=1_800),
}
ROUNDS = {"short": 1, "long": 3}
UNITS = {"p50": "ms", "p99": "ms", "first": "ms"}
GOALS = [
    Goal("p50 / bare NOTIFY and claim", "p50", "pyjobs", "bare", at_most=2),
    Goal("p99 / bare NOTIFY and claim", "p99", "pyjobs", "bare", at_most=2),
]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def pick_up(system: contest.System) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            with contest.installed(bench, system) as url:
                # One that tells when the worker is there; its own wait does not count.
                contest.call(bench, system, "enqueue", url, jobs=1)
                jobs = size.rate + size.jobs
                with contest.start(
                    bench,
                    system,
                    "work",
                    url,
                    jobs=jobs + 1,
                    first=size.rate,
                    setting=system.waiting,
                    wait=True,
                ) as worker:
                    worker.ready()
                    contest.call(bench, system, "produce", url, jobs=jobs, rate=size.rate)
                    done = worker.result()
            return Measured({name: done[name] * 1000 for name in UNITS})

        return run

    return {system.name: pick_up(system) for system in contest.SYSTEMS}
