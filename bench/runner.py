"""Runs workloads in turn, round by round, and keeps what was measured."""

from __future__ import annotations

import json
import platform
import sys
import traceback
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING, Any

from bench import contest
from bench.server import Bench
from bench.workload import Lines, Points, Verdict, Workload, judge, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: What the short form may take at most, in seconds. The first round runs in any case.
BUDGET = 540.0
GROWTH_BUDGET = 420.0


@dataclass
class Measurement:
    """One side of one workload in one round; seconds: with its preparation."""

    workload: str
    side: str
    round: int
    seconds: float
    figures: dict[str, float]
    series: dict[str, Points] = field(default_factory=dict)
    lists: dict[str, Lines] = field(default_factory=dict)


@dataclass
class Failure:
    workload: str
    side: str
    round: int
    error: str


@dataclass
class Results:
    """What a run found; kept as JSON, so that a report can be made of it again."""

    form: str
    command: str
    workloads: list[str]
    started: str = ""
    seconds: float = 0.0
    skipped: int = 0  # measurements of later rounds that did not fit the time
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def figure(self, workload: str, figure: str) -> dict[str, dict[int, float]]:
        """One figure of a workload: side to round to value."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for each in self.measurements:
            if each.workload == workload and figure in each.figures:
                found[each.side][each.round] = each.figures[figure]
        return found

    def verdicts(self, workload: Workload) -> list[Verdict]:
        judged = (
            judge(goal, self.form, self.figure(workload.name, goal.figure))
            for goal in workload.goals
        )
        return [verdict for verdict in judged if verdict is not None]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises OSError, ValueError or TypeError where it is not one."""
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["measurements"] = [Measurement(**each) for each in found["measurements"]]
        found["failures"] = [Failure(**each) for each in found["failures"]]
        return cls(**found)


def run(
    names: Sequence[str],
    *,
    form: str,
    rounds: int | None,
    folder: str | None,
    settings: Mapping[str, str],
    budget: float | None,
    out: Path,
) -> Results:
    """Measure; what was measured is saved after each measurement, so that nothing is lost.

    rounds: how many; None: as each workload says. budget: seconds after which no measurement of a
    later round is begun.
    """
    workloads = [load(name) for name in names]
    results = Results(form, " ".join(["python -m bench", *sys.argv[1:]]), list(names))
    results.started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if any(name in {"worker", "pickup", "footprint"} for name in names):
        contest.python(contest.BY_NAME["pgqueuer"])  # the peers' environment, before the clock runs
    began = monotonic()
    took: dict[tuple[str, str], float] = {}
    with Bench(folder, settings) as bench:
        results.machine = bench.machine()
        results.versions = {
            **bench.versions(),
            "Python": platform.python_version(),
            **{name: version(name) for name in ("pyjobs", "psycopg")},
            **contest.versions(),
        }
        results.settings = dict(bench.settings)
        for number in range(max(rounds or each.rounds[form] for each in workloads)):
            for workload in workloads:
                if number >= (rounds or workload.rounds[form]):
                    continue
                sides = list(workload.sides(workload.sizes[form]).items())
                # Another side goes first each time, so that none always follows the same one.
                first = number % len(sides)
                for side, measure in sides[first:] + sides[:first]:
                    key = (workload.name, side)
                    spent = monotonic() - began
                    if number and budget is not None and spent + took.get(key, 0) > budget:
                        results.skipped += 1
                        continue
                    start = monotonic()
                    _say(f"{spent:5.0f} s  round {number + 1}  {workload.name}: {side}")
                    try:
                        measured = measure(bench)
                    except Exception as error:  # noqa: BLE001 - told in the report, and the rest runs
                        traceback.print_exc()
                        text = f"{type(error).__name__}: {error}"
                        results.failures.append(Failure(workload.name, side, number, text))
                    else:
                        _say("         " + _figures(measured.figures, workload.units))
                        results.measurements.append(
                            Measurement(
                                workload.name,
                                side,
                                number,
                                monotonic() - start,
                                measured.figures,
                                measured.series,
                                measured.lists,
                            )
                        )
                    took[key] = monotonic() - start
                    results.seconds = monotonic() - began
                    results.save(out)
    return results


def _say(text: str) -> None:
    print(text, flush=True)


def _figures(figures: Mapping[str, float], units: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value:,.5g} {units[name]}" for name, value in figures.items())
