"""One scenario of the explorer on the schema in a folder; says in one line of JSON what it found.

``python -m tests.mutants.explore ROOT URL DATABASE SCENARIO BOUND LIMIT``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psycopg

from tests.explorer import scenarios, search
from tests.explorer.check import Checker
from tests.explorer.report import from_line
from tests.explorer.run import Plan, Runner
from tests.explorer.sessions import Database


def main(root: str, url: str, name: str, scenario: str, bound: str, limit: str) -> None:
    """Stops at the first schedule that breaks a rule."""
    runner = Runner(Database(url, name, root=Path(root)))
    checker = Checker(runner)
    problems: list[str] = []
    schedules = 0
    try:
        if ":" in scenario:
            plain, choices = from_line(scenario)
            chosen = scenarios.find(plain)
            how = (
                search.Dice(choices, len(chosen.sessions), 60)
                if isinstance(choices, int)
                else Plan(choices)
            )
            schedules = 1
            problems = checker.check(runner.run(chosen, how))
        else:
            chosen = scenarios.find(scenario)
            tally = search.Tally()
            for outcome in search.bounded(chosen, runner.run, int(bound), tally, limit=int(limit)):
                problems = checker.check(outcome)
                if problems:
                    break
            schedules = tally.schedules
    finally:
        runner.close()
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(f"drop database if exists {name} with (force)".encode())
    print(json.dumps({"problems": sorted(set(problems)), "schedules": schedules}))


if __name__ == "__main__":
    main(*sys.argv[1:])
