"""Plain jobs through each system's own worker.

One worker process of each works off a queue of no-op jobs that were enqueued beforehand, with the
settings that its documentation offers; the best one counts. The rate is that of the middle eight
tenths of the jobs, so that no system pays for its start, and afterwards it is checked that none is
left. All run on the same server with the same durability, by TCP. Other processes of a system
would share the two processors of this machine. The number behind a name is its setting: for pyjobs
lanes of the worker, or from 100 on jobs leased at once (negative: the asynchronous one), jobs a
claim for bare, pgmq and pgqueuer, jobs at once for the rest. What the systems do not do stands in
the table of systems.
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
    slow: int  # for systems that need much longer


SIZES = {
    "smoke": Size(jobs=200, slow=50),
    "short": Size(jobs=4_000, slow=600),
    "long": Size(jobs=50_000, slow=5_000),
}
ROUNDS = {"short": 2, "long": 3}
SLOW = {"procrastinate", "absurd", "dbos"}
UNITS = {"rate": "jobs/s", "enqueue in bulk": "jobs/s"}
GOALS = [
    Goal("pyjobs' Worker / pgqueuer's", "rate", "pyjobs *", "pgqueuer *", at_least=2),
    Goal("pyjobs' Worker / awa's", "rate", "pyjobs *", "awa *", at_least=1.5),
    Goal("pyjobs' Worker / procrastinate's", "rate", "pyjobs *", "procrastinate *", at_least=10),
    Goal("pyjobs' Worker / absurd's", "rate", "pyjobs *", "absurd *", at_least=1),
    Goal("pyjobs' Worker / DBOS's", "rate", "pyjobs *", "dbos *", at_least=1),
]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def drain(system: contest.System, setting: int) -> Callable[[Bench], Measured]:
        jobs = size.slow if system.name in SLOW else size.jobs

        def run(bench: Bench) -> Measured:
            with contest.installed(bench, system) as url:
                filled = contest.call(bench, system, "enqueue", url, jobs=jobs)
                done = contest.call(bench, system, "work", url, jobs=jobs, setting=setting)
                left = contest.call(bench, system, "left", url)["left"]
            assert left == 0, f"{left} of {jobs} jobs are left"
            return Measured({"rate": done["rate"], "enqueue in bulk": jobs / filled["seconds"]})

        return run

    return {
        contest.side(system, setting): drain(system, setting)
        for system in contest.SYSTEMS
        for setting in system.settings
    }
