"""docs/performance.md and its plots, out of what a run measured."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from bench import contest
from bench.workload import Verdict, Workload, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from bench.runner import Results


def write(results: Results, path: Path) -> None:
    """Write the report, and its plots into a folder beside it that bears its name."""
    from bench import plots  # noqa: PLC0415 - matplotlib is needed for them only

    folder = path.with_suffix("")
    pictures = plots.draw(results, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {name: [f"{folder.name}/{file}" for file in files] for name, files in pictures.items()}
    path.write_text(markdown(results, named), encoding="utf-8")


def markdown(results: Results, pictures: dict[str, list[str]]) -> str:
    """The report's text. pictures: workload, or `ratios`, to the files that belong there."""
    workloads = [load(name) for name in results.workloads]
    parts = [
        "# Performance",
        _head(results),
        "## Ratios",
        "Each is a ratio of medians over the rounds of this one run; the range is that of the"
        " rounds taken by themselves. Absolute figures depend on the machine, and follow below.",
        _ratios(results),
        *_images(pictures.get("ratios", [])),
        "## The systems",
        "Installed from pip in an environment of their own, each with its own worker as its"
        " documentation shows it, on the same server with the same durability. Of the"
        " workers only pyjobs' commits the rows that a handler writes with the end of its job.",
        _systems(results),
        "## The machine",
        table(["what", "is"], [*results.machine.items(), *results.versions.items()]),
        "The server's settings: "
        + ", ".join(f"`{name} = {value}`" for name, value in results.settings.items())
        + "; all else is PostgreSQL's default.",
    ]
    for workload in workloads:
        parts += [f"## {workload.title}", workload.doc, _figures(results, workload)]
        parts += _images(pictures.get(workload.name, []))
        parts += _lists(results, workload)
    if results.failures:
        rows = [(f.workload, f.side, str(f.round + 1), _cell(f.error)) for f in results.failures]
        parts += ["## What failed", table(["workload", "side", "round", "error"], rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_growth(results: Results, path: Path) -> None:
    """Write the report of what was measured as things grow, and its plots beside it."""
    from bench import plots  # noqa: PLC0415 - matplotlib is needed for them only

    pictures = plots.draw_growth(results, path.with_suffix(""))
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {name: f"{path.stem}/{file}" for name, file in pictures.items()}
    path.write_text(growth_markdown(results, named), encoding="utf-8")


def growth_markdown(results: Results, pictures: dict[str, str]) -> str:
    """The text of that report. pictures: curve to its file."""
    own = [pair for pair in results.versions.items() if pair[0] not in contest.versions()]
    parts = [
        "# Cost as it grows",
        f"Written by `{results.command}` on {results.started}, in {results.seconds / 60:.0f}"
        f" minutes: the {results.form} form. What pyjobs does as one thing grows, and beside it"
        " what the server itself can do of the kind, measured in turn on one server that the"
        " command starts on disk. Absolute figures depend on the machine; the ratio of the two"
        " lines does so less, and a bend that both have is the server's.",
        _busy(results),
        table(["what", "is"], [*results.machine.items(), *own]),
        "The server's settings: "
        + ", ".join(f"`{name} = {value}`" for name, value in results.settings.items())
        + "; all else is PostgreSQL's default.",
    ]
    for curve in map(load, results.workloads):
        parts += [f"## {curve.title}", curve.doc, _curve(results, curve)]
        parts += _images([pictures[curve.name]] if curve.name in pictures else [])
        parts += [curve.bends]
    if results.failures:
        rows = [(f.workload, f.side, str(f.round + 1), _cell(f.error)) for f in results.failures]
        parts += ["## What failed", table(["curve", "side", "round", "error"], rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _busy(results: Results) -> str:
    """What to think of figures that were taken beside other work."""
    load = float(results.machine.get("load before", "0").split()[0])
    cores = int(results.machine.get("cores", "1"))
    if load <= cores:
        return ""
    return (
        f"**The machine was busy with other work: a load of {load:.0f} on {cores} cores before the"
        " first measurement.** Rates are a fraction of what it does by itself, neighbouring points"
        " differ by chance, and only what stands out of that says anything."
    )


def curves(results: Results, curve: Workload, figure: str) -> dict[str, dict[int, list[float]]]:
    """Line to x to what the rounds measured."""
    found: dict[str, dict[int, list[float]]] = {}
    measured = results.figure(curve.name, figure)
    for side in sorted(measured, key=_order(curve, results)):
        line, _, x = side.rpartition(" ")
        found.setdefault(line, {})[int(x)] = list(measured[side].values())
    return found


def _curve(results: Results, curve: Workload) -> str:
    """A row for each x: the lines' figures, and the ratio of their rates."""
    figures = {figure: curves(results, curve, figure) for figure in curve.units}
    rates = figures["rate"]
    rows = []
    for x in sorted({x for line in rates.values() for x in line}):
        cells = [
            number(median(line[x])) if x in line else "-"
            for lines in figures.values()
            for line in lines.values()
        ]
        both = [median(line[x]) for line in rates.values() if x in line]
        ratio = number(both[0] / both[1]) if len(both) == 2 and both[1] else "-"
        rows.append((f"{x:,}", *cells, ratio))
    heads = [f"{line}: {f}, {curve.units[f]}" for f, lines in figures.items() for line in lines]
    return table([curve.axis, *heads, "ratio of the rates"], rows)


def ratios(results: Results) -> list[tuple[Workload, Verdict]]:
    """All goals that were measured, in order."""
    return [
        (workload, verdict)
        for workload in map(load, results.workloads)
        for verdict in results.verdicts(workload)
    ]


def _head(results: Results) -> str:
    text = (
        f"Written by `{results.command}` on {results.started}, in"
        f" {results.seconds / 60:.0f} minutes: the {results.form} form. All sides of a comparison"
        " are measured in turn, round by round, on one server that the command starts on disk, so"
        " that a drift of the machine hits them alike. `make bench` writes this page again;"
        " `python -m bench run --form long` takes the sizes that the goals speak of."
    )
    if results.form != "long":
        text += " Goals are judged here at smaller sizes than they speak of."
    if results.skipped:
        text += f" {results.skipped} measurements of later rounds did not fit the time."
    return text


def _ratios(results: Results) -> str:
    rows = [
        (
            f"[{verdict.goal.what}](#{anchor(workload.title)})",
            verdict.goal.bound,
            f"**{number(verdict.ratio)}**",
            f"{number(verdict.low)} - {number(verdict.high)}",
            _sides(results, workload, verdict),
            {True: "yes", False: "**no**", None: "not judged"}[verdict.holds],
        )
        for workload, verdict in ratios(results)
    ]
    return table(["ratio", "goal", "is", "range", "of", "holds"], rows)


def _sides(results: Results, workload: Workload, verdict: Verdict) -> str:
    if verdict.over is None:
        return verdict.of
    values = results.figure(workload.name, verdict.goal.figure)
    unit = workload.units[verdict.goal.figure]
    return (
        " / ".join(
            f"{side} {number(median(values[side].values()))}" for side in (verdict.of, verdict.over)
        )
        + f" {unit}"
    )


def _systems(results: Results) -> str:
    rate = results.figure("worker", "rate")
    weight = {name: results.figure("footprint", name) for name in ("WAL", "disk")}
    wait = {name: results.figure("pickup", name) for name in ("p50", "p99")}
    rows = []
    for system in contest.SYSTEMS:
        rates = {
            setting: median(rate[side].values())
            for setting in system.settings
            if rate.get(side := contest.side(system, setting))
        }
        best = max(rates, key=rates.__getitem__) if rates else None
        rows.append(
            (
                system.name,
                results.versions.get(system.package or "pyjobs", "-")
                if system.name != "bare"
                else "-",
                "-" if best is None else f"{number(rates[best])} ({best})",
                *(_median(wait[name].get(system.name)) for name in wait),
                *(_median(weight[name].get(system.name)) for name in weight),
                system.lacks,
            )
        )
    return table(
        ["system", "version", "jobs/s (setting)", "pickup p50, ms", "p99, ms",
         "WAL, bytes/job", "disk, bytes/job", "what it lacks"],
        rows,
    )  # fmt: skip


def _median(rounds: dict[int, float] | None) -> str:
    return number(median(rounds.values())) if rounds else "-"


def _figures(results: Results, workload: Workload) -> str:
    figures = {name: results.figure(workload.name, name) for name in workload.units}
    figures = {name: sides for name, sides in figures.items() if sides}
    sides = list(dict.fromkeys(side for found in figures.values() for side in found))
    sides.sort(key=_order(workload, results))
    rows = []
    for side in sides:
        cells = []
        for found in figures.values():
            values = list(found.get(side, {}).values())
            if not values:
                cells.append("-")
            elif len(values) == 1:
                cells.append(number(values[0]))
            else:
                low, high = number(min(values)), number(max(values))
                cells.append(f"{number(median(values))} ({low} - {high})")
        rounds = max(len(found.get(side, {})) for found in figures.values())
        rows.append((side, *cells, str(rounds)))
    heads = [f"{name}, {workload.units[name]}" for name in figures]
    return table(["side", *heads, "rounds"], rows)


def _lists(results: Results, workload: Workload) -> list[str]:
    """The lists of the first round that has them, a table each."""
    found: dict[str, str] = {}
    for each in results.measurements:
        if each.workload == workload.name:
            for name, lines in each.lists.items():
                rows = [(_cell(what), number(value)) for what, value in lines]
                found.setdefault(name, table([*name.split(" | "), ""][:2], rows))
    return list(found.values())


def _order(workload: Workload, results: Results) -> Callable[[str], int]:
    order = list(workload.sides(workload.sizes[results.form]))
    return lambda side: order.index(side) if side in order else len(order)


def _images(files: Iterable[str]) -> list[str]:
    return [f"![{file.rpartition('/')[2].removesuffix('.png')}]({file})" for file in files]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; empty where there are no rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines])


def number(value: float) -> str:
    """Three digits that count, and thousands set apart."""
    if value == 0:
        return "0"
    digits = max(0, 3 - len(str(int(abs(value))))) if abs(value) >= 1 else 3
    text = f"{value:,.{digits}f}"
    return (
        text
        if digits or abs(value) < 1000
        else f"{round(value, 3 - len(str(int(abs(value))))):,.0f}"
    )


def anchor(title: str) -> str:
    """The link to a heading, as it is made from its text."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]
