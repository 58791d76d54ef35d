"""A hundred workers with nothing to do.

A hundred asynchronous workers in four processes wait on an empty queue, once polling every second,
which is the default, and once woken by NOTIFY and polling every 30 seconds. The processor time of
the server and of the workers' processes while they wait, as a share of one core. Starting up does
not count, nor what follows it: that each asks once more, soon, and once after the first long pause,
in a session that has not called these functions before. Then they ask as they will in the hours to
come.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING

from bench import contest
from bench.server import children, cpu_seconds
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    seconds: int
    workers: int = 100
    processes: int = 4
    #: How long it takes until all have asked once after the first long pause: 30 seconds, give or
    #: take half of it.
    settle: int = 47


SIZES = {
    "smoke": Size(seconds=2, workers=8, processes=2, settle=1),
    "short": Size(seconds=8),
    "long": Size(seconds=120),
}
ROUNDS = {"short": 1, "long": 3}
UNITS = {"server": "% of a core", "workers": "% of a core", "both": "% of a core"}
GOALS = [
    Goal("percent of a core, server: at rest, listening", "server", "listening", at_most=1),
    Goal("percent of a core, server: polling", "server", "polling", at_most=1),
    Goal("percent of a core, with the workers: listening", "both", "listening", at_most=1),
]


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def rest(*, listen: bool) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            system = contest.BY_NAME["pyjobs"]
            with ExitStack() as stack:
                url = stack.enter_context(bench.database(tcp=True))
                each = size.workers // size.processes
                calls = [
                    stack.enter_context(
                        contest.start(bench, system, "rest", url, workers=each, listen=listen)
                    )
                    for _ in range(size.processes)
                ]
                for call in calls:
                    call.ready()
                # What starts late, as the pools that fill; and the pause after the first answers.
                sleep(size.settle if listen else min(size.settle, 3))

                def used() -> float:
                    # With what a worker's process started itself.
                    pids = [call.process.pid for call in calls]
                    pids += [child for pid in pids for child in children(pid)]
                    return sum(map(cpu_seconds, pids))

                server, workers = bench.cpu_seconds(), used()
                sleep(size.seconds)
                server = bench.cpu_seconds() - server
                workers = used() - workers
            share = 100 / size.seconds
            return Measured(
                {
                    "server": server * share,
                    "workers": workers * share,
                    "both": (server + workers) * share,
                }
            )

        return run

    return {"polling": rest(listen=False), "listening": rest(listen=True)}
