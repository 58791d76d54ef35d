"""The report's pictures: ratios against their goals, rates over time, bars."""

from __future__ import annotations

import re
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bench import growth, report
from bench.workload import load

if TYPE_CHECKING:
    from pathlib import Path

    from bench.runner import Results

#: Workloads whose sides are compared by one figure, as bars.
BARS = {"worker": "rate", "pickup": "p99", "footprint": "WAL", "waiting": "claim"}
HELD, MISSED, UNJUDGED = "#2a7f4f", "#c0392b", "#7f8c8d"

mpl.use("agg")


def draw(results: Results, folder: Path) -> dict[str, list[str]]:
    """Draw all that there is to draw; returns workload, or `ratios`, to file names in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[str]] = defaultdict(list)
    if report.ratios(results):
        made["ratios"].append(_save(_ratios(results), folder, "ratios"))
    for name in results.workloads:
        for series, lines in _series(results, name).items():
            file = f"{name}-{re.sub(r'[^a-z0-9]+', '-', series.lower()).strip('-')}"
            made[name].append(_save(_lines(series, lines), folder, file))
        if name in BARS and results.figure(name, BARS[name]):
            made[name].append(_save(_bars(results, name), folder, name))
    return dict(made)


def draw_growth(results: Results, folder: Path) -> dict[str, str]:
    """Draw a picture for each curve; returns curve to file name in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: _save(_curve(results, name), folder, name)
        for name in results.workloads
        if results.figure(name, "rate")
    }


def _curve(results: Results, name: str) -> Figure:
    """Rates over what grows, both on logarithmic scales; the bars are the range of the rounds."""
    curve = load(name)
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    lines = report.curves(results, curve, "rate")
    for line, points in lines.items():
        xs = sorted(points)
        middles = [median(points[x]) for x in xs]
        spread = [
            [middle - min(points[x]) for x, middle in zip(xs, middles, strict=True)],
            [max(points[x]) - middle for x, middle in zip(xs, middles, strict=True)],
        ]
        colour = UNJUDGED if line == growth.LIMIT else HELD
        axes.errorbar(xs, middles, yerr=spread, color=colour, marker="o", capsize=3, label=line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({x for points in lines.values() for x in points})
    axes.set_xticks(sizes, labels=[f"{x:,}" for x in sizes])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(curve.axis)
    axes.set_ylabel(curve.units["rate"])
    axes.legend(fontsize=8)
    axes.grid(visible=True, alpha=0.3)
    return figure


def _save(figure: Figure, folder: Path, name: str) -> str:
    # Nothing in the file tells when it was made, so that the same figures give the same file.
    figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
    return f"{name}.png"


def _ratios(results: Results) -> Figure:
    """How far each ratio is beyond its goal, on a logarithmic scale; to the right is better."""
    found = [verdict for _, verdict in report.ratios(results)][::-1]
    figure = Figure(figsize=(9, 0.6 + 0.27 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, verdict in enumerate(found):
        bound = verdict.goal.at_least or verdict.goal.at_most
        assert bound is not None
        if verdict.goal.at_least is not None:
            middle, ends = verdict.ratio / bound, [verdict.low / bound, verdict.high / bound]
        else:
            middle, *ends = (
                bound / max(value, bound / 1000)
                for value in (verdict.ratio, verdict.low, verdict.high)
            )
        colour = {True: HELD, False: MISSED, None: UNJUDGED}[verdict.holds]
        axes.plot([max(end, 1e-3) for end in ends], [row, row], color=colour, lw=2)
        axes.plot([max(middle, 1e-3)], [row], "o", color=colour)
    axes.axvline(1, color="black", lw=1)
    axes.set_ylim(-1, len(found))
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)))
    axes.set_yticklabels([f"{v.goal.what} ({v.goal.bound})" for v in found], fontsize=7)
    axes.set_xlabel("times the goal; right of the line it holds")
    axes.grid(visible=True, axis="x", alpha=0.3)
    return figure


def _series(results: Results, name: str) -> dict[str, dict[str, Any]]:
    """Series to side to its points in the first round that has it."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for each in results.measurements:
        if each.workload == name:
            for series, points in each.series.items():
                if points:
                    found[series].setdefault(each.side, points)
    return found


def _lines(title: str, lines: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for side, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=side)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(visible=True, alpha=0.3)
    return figure


def _bars(results: Results, name: str) -> Figure:
    unit = load(name).units[BARS[name]]
    found = results.figure(name, BARS[name])
    sides = list(found)[::-1]
    figure = Figure(figsize=(7, 0.8 + 0.25 * len(sides)), layout="constrained")
    axes = figure.subplots()
    middles = [median(found[side].values()) for side in sides]
    spread = [
        [middle - min(found[side].values()) for middle, side in zip(middles, sides, strict=True)],
        [max(found[side].values()) - middle for middle, side in zip(middles, sides, strict=True)],
    ]
    colours = [HELD if side.startswith("pyjobs") else UNJUDGED for side in sides]
    axes.barh(sides, middles, xerr=spread, color=colours)
    axes.set_title(f"{BARS[name]}, {unit}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, axis="x", alpha=0.3)
    return figure
