"""The command line: run, share, replay, list, tally."""

from __future__ import annotations

import argparse
import datetime as dt
import multiprocessing
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pyjobs import embedded
from tests.explorer import scenarios
from tests.explorer.explore import Explorer, Total, work
from tests.explorer.report import from_line, table
from tests.explorer.sessions import SETTINGS, Database

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
TALLY = ROOT / "docs" / "explored.md"
_ROW = re.compile(
    r"^\| (?P<date>[\d-]+) \| (?P<commit>\w+) \| (?P<systematic>\d+) \| (?P<random>\d+) \|"
    r" (?P<seeds>[^|]*) \| (?P<seconds>\d+) \| (?P<failures>\d+) \| (?P<note>[^|]*)\|$"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a schedule broke a rule, or fewer were gone through than asked for."""
    parser = argparse.ArgumentParser(prog="tests.explorer")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="explore")
    run.add_argument("--seconds", type=float, default=900)
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--bound", type=int, default=2, help="preemptions in a schedule, at most")
    run.add_argument("--limit", type=int, default=400, help="schedules of a scenario, at most")
    run.add_argument("--seed", type=int, default=0, help="the first of the random ones")
    run.add_argument("--only", default="", help="scenarios whose name contains this")
    run.add_argument("--schedules", type=int, help="stop at so many; with fewer it has failed")
    run.add_argument("--random", action="store_true", help="only random ones")
    run.add_argument("--note", help="enter the run in the tally, with this note")
    replay = verbs.add_parser("replay", help="run one schedule again")
    replay.add_argument("line", help="scenario:a5.b12.c! or scenario:seed=7")
    verbs.add_parser("list", help="name the scenarios")
    verbs.add_parser("tally", help="add up what was explored so far")
    given = parser.parse_args(arguments)
    match given.verb:
        case "list":
            for scenario in scenarios.every():
                print(scenario.name)
            return 0
        case "tally":
            return _tally()
    with embedded.server(settings=SETTINGS) as server:
        if given.verb == "replay":
            return _replay(server.url(), given.line)
        return _run(server.url(), given)


def _run(url: str, given: argparse.Namespace) -> int:
    began = time.monotonic()
    if given.workers == 1:
        totals = [work(url, 0, given)]
    else:
        # Spawned, so that nobody inherits a server.
        with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
            totals = pool.starmap(
                work, [(url, n, given) for n in range(given.workers)], chunksize=1
            )
    seconds = time.monotonic() - began
    for total in totals:
        print(total)
    schedules = sum(t.schedules for t in totals)
    failures = sum(len(t.failures) for t in totals)
    print(
        f"in all {schedules} schedules of {len(scenarios.every())} scenarios and of random scenes "
        f"in {seconds:.0f} s, {schedules / seconds:.0f} a second; {failures} failures"
    )
    if given.note is not None:
        _enter(given, totals, seconds)
    if given.schedules is not None and schedules < given.schedules:
        print(f"FAILED: fewer than {given.schedules} schedules in {given.seconds:.0f} s")
        return 1
    return 1 if failures else 0


def _enter(given: argparse.Namespace, totals: list[Total], seconds: float) -> None:
    """Add a line to the tally."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    at_random = sum(t.random for t in totals)
    systematic = sum(t.schedules for t in totals) - at_random
    today = dt.datetime.now(dt.UTC).date()
    seeds = f"{given.seed} on" if at_random else "none"
    failures = sum(len(t.failures) for t in totals)
    with TALLY.open("a", encoding="utf-8") as file:
        file.write(
            f"| {today} | {commit} | {systematic} | {at_random} | {seeds} | {seconds:.0f} |"
            f" {failures} | {given.note} |\n"
        )


def _tally() -> int:
    """What the file says, added up; exit status 1 where a line of it cannot be read."""
    sums = {"systematic": 0, "random": 0, "seconds": 0, "failures": 0}
    lines = [
        line
        for line in TALLY.read_text("utf-8").splitlines()
        if line.startswith("|") and not line.startswith(("| date", "|--", "| --"))
    ]
    for line in lines:
        row = _ROW.match(line)
        if row is None:
            print(f"not a line of the tally: {line}")
            return 1
        for name in sums:
            sums[name] += int(row[name])
    print(
        f"{len(lines)} runs: {sums['systematic'] + sums['random']} schedules "
        f"({sums['systematic']} systematic, {sums['random']} random) in "
        f"{sums['seconds'] / 3600:.1f} h; {sums['failures']} failures"
    )
    return 0


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
