"""What a workload is: sides that are measured in turn, and the ratios they are held to."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import growth, workloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from bench.server import Bench

Points = list[tuple[float, float]]
Lines = list[tuple[str, float]]

#: Sizes: `smoke` shows that a workload runs, `short` fits them all in 10 minutes, `long` is the
#: size that the goals speak of.
FORMS = ("smoke", "short", "long")


@dataclass
class Measured:
    """One measurement of one side.

    figures: name to number; the module's UNITS say in what.
    series: name to points (x, y), for a plot.
    lists: name to lines (what, value), the greatest first, for what has no names known beforehand.
    """

    figures: dict[str, float]
    series: dict[str, Points] = field(default_factory=dict)
    lists: dict[str, Lines] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A ratio of medians, and its bound.

    figure: which figure is compared.
    of, over: the sides; a pattern (`pgqueuer*`) means the best that matches. `over` None: the
        figure is a ratio already, taken within one measurement.
    at_least, at_most: the bound; one of them. It also says which way is better.
    only: the form that the bound is for; in others the ratio is shown, and not judged.
    """

    what: str
    figure: str
    of: str
    over: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    only: str | None = None

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def holds(self, ratio: float) -> bool:
        if self.at_least is not None:
            return ratio >= self.at_least
        return self.at_most is not None and ratio <= self.at_most

    def best(self, values: Iterable[float]) -> float:
        return max(values) if self.at_least is not None else min(values)


@dataclass(frozen=True)
class Workload:
    """A module of bench.workloads or bench.growth, checked.

    axis, bends: of bench.growth only: what grows, and why the curve bends.
    """

    name: str
    title: str
    doc: str
    goals: tuple[Goal, ...]
    units: Mapping[str, str]
    sizes: Mapping[str, Any]
    rounds: Mapping[str, int]
    sides: Callable[[Any], dict[str, Callable[[Bench], Measured]]]
    axis: str = ""
    bends: str = ""


#: Rounds where a module does not say otherwise.
ROUNDS = {"smoke": 1, "short": 3, "long": 5}


def names(package: ModuleType = workloads) -> list[str]:
    """The workloads, in the order in which they run and are reported."""
    modules = [found.name for found in pkgutil.iter_modules(package.__path__)]
    return sorted(modules, key=lambda name: (package.ORDER.index(name), name))


def load(name: str) -> Workload:
    """The workload, or the growth, of that name. Raises KeyError where there is none."""
    packages = [each for each in (workloads, growth) if name in names(each)]
    if not packages:
        raise KeyError(f"no workload {name!r}; there are: {', '.join(names())}")
    module: ModuleType = importlib.import_module(f"{packages[0].__name__}.{name}")
    title, _, doc = (module.__doc__ or "").strip().partition("\n")
    return Workload(
        name=name,
        title=title.rstrip("."),
        doc=doc.strip(),
        goals=tuple(module.GOALS),
        units=module.UNITS,
        sizes=module.SIZES,
        rounds=ROUNDS | getattr(module, "ROUNDS", {}),
        sides=module.sides,
        axis=getattr(module, "AXIS", ""),
        bends=getattr(module, "BENDS", "").strip(),
    )


@dataclass(frozen=True)
class Verdict:
    """A goal and what came out: the ratio of medians, and the range of the rounds' own ratios."""

    goal: Goal
    of: str
    over: str | None
    ratio: float
    low: float
    high: float
    holds: bool | None  # None: not judged in this form


def judge(goal: Goal, form: str, rounds: Mapping[str, Mapping[int, float]]) -> Verdict | None:
    """Hold a goal against `rounds`: side to round to the goal's figure. None: not measured."""
    of = _best(goal, goal.of, rounds)
    over = _best(goal, goal.over, rounds) if goal.over is not None else None
    if of is None or (goal.over is not None and over is None):
        return None
    values = rounds[of]
    if over is None:
        ratio, each = median(values.values()), list(values.values())
    else:
        base = rounds[over]
        if not all(base.values()):
            return None
        ratio = median(values.values()) / median(base.values())
        each = [values[n] / base[n] for n in values if n in base] or [ratio]
    judged = goal.only is None or goal.only == form
    return Verdict(
        goal, of, over, ratio, min(each), max(each), goal.holds(ratio) if judged else None
    )


def _best(goal: Goal, pattern: str, rounds: Mapping[str, Mapping[int, float]]) -> str | None:
    medians = {
        side: median(values.values())
        for side, values in rounds.items()
        if values and fnmatchcase(side, pattern)
    }
    if not medians:
        return None
    best = goal.best(medians.values())
    return next(side for side, value in medians.items() if value == best)
