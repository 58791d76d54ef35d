"""The command line: run, replay, list."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from typing import TYPE_CHECKING

from pyjobs import embedded
from tests.explorer import scenarios
from tests.explorer.explore import Explorer, work
from tests.explorer.report import from_line, table
from tests.explorer.sessions import SETTINGS, Database

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a schedule broke a rule."""
    parser = argparse.ArgumentParser(prog="tests.explorer")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="explore")
    run.add_argument("--seconds", type=float, default=900)
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--bound", type=int, default=2, help="preemptions in a schedule, at most")
    run.add_argument("--limit", type=int, default=400, help="schedules of a scenario, at most")
    run.add_argument("--seed", type=int, default=0, help="the first of the random ones")
    run.add_argument("--only", default="", help="scenarios whose name contains this")
    replay = verbs.add_parser("replay", help="run one schedule again")
    replay.add_argument("line", help="scenario:a5.b12.c! or scenario:seed=7")
    verbs.add_parser("list", help="name the scenarios")
    given = parser.parse_args(arguments)
    if given.verb == "list":
        for scenario in scenarios.every():
            print(scenario.name)
        return 0
    with embedded.server(settings=SETTINGS) as server:
        if given.verb == "replay":
            return _replay(server.url(), given.line)
        if given.workers == 1:
            totals = [work(server.url(), 0, given)]
        else:
            # Spawned, so that nobody inherits a server.
            with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
                totals = pool.starmap(
                    work, [(server.url(), n, given) for n in range(given.workers)], chunksize=1
                )
    for total in totals:
        print(total)
    print(f"in all {sum(t.schedules for t in totals)} schedules")
    return 1 if any(t.failures for t in totals) else 0


def _replay(url: str, line: str) -> int:
    name, how = from_line(line)
    explorer = Explorer(Database(url, "explorer_replay"))
    scenario = scenarios.find(name)
    if isinstance(how, int):
        how = explorer.play_seed(scenario, how).choices
    outcome, problems = explorer.play(scenario, how)
    print(table(outcome))
    print()
    print("\n".join(problems) or "no rule is broken")
    explorer.close()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
