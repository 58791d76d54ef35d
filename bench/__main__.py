"""`python -m bench`: list the workloads, run them, write the report."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench import growth, runner, workload, workloads

RESULTS = Path("build/bench/results.json")
REPORT = Path("docs/performance.md")
GROWTH_RESULTS = Path("build/bench/growth.json")
GROWTH_REPORT = Path("docs/growth.md")


def main() -> int:
    # Asked to end, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the workloads, and what each is held to")
    run = commands.add_parser("run", help="measure, all workloads or some")
    grow = commands.add_parser("grow", help="measure as things grow, and write docs/growth.md")
    for command, kept, written in ((run, RESULTS, None), (grow, GROWTH_RESULTS, GROWTH_REPORT)):
        command.add_argument("names", nargs="*", metavar="NAME", help="some of them; none: all")
        command.add_argument("--form", choices=workload.FORMS, default="short", help="the sizes")
        command.add_argument("--rounds", type=int, help="how often each is measured")
        command.add_argument("--folder", help="where the server's data are made; on a disk")
        command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                             help="one more setting of the server")  # fmt: skip
        command.add_argument("--budget", type=float,
                             help="seconds after which no later round is begun")  # fmt: skip
        command.add_argument("--results", type=Path, default=kept, help="what was measured, JSON")
        command.add_argument("--report", type=Path, default=written, help="write the report there")
    report = commands.add_parser("report", help="write the report of a run that was made before")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--report", type=Path, help="there; of a run of `grow`: docs/growth.md")
    arguments = parser.parse_args()
    growing = arguments.command == "grow"
    known = workload.names(growth if growing else workloads)

    if arguments.command == "list":
        for name in known:
            each = workload.load(name)
            print(f"{name:10} {each.title}")
            for goal in each.goals:
                print(f"{'':10}   {goal.what} {goal.bound}")
        print(f"grow: {', '.join(workload.names(growth))}")
        return 0
    if arguments.command == "report":
        results = runner.Results.read(arguments.results)
        if arguments.report is None:
            arguments.report = GROWTH_REPORT if is_growth(results) else REPORT
    else:
        settings = dict(pair.split("=", 1) for pair in arguments.set)
        unknown = set(arguments.names) - set(known)
        if unknown:
            parser.error(f"no workload {', '.join(sorted(unknown))}; see: python -m bench list")
        budget = arguments.budget
        if budget is None and arguments.form == "short":
            budget = runner.GROWTH_BUDGET if growing else runner.BUDGET
        results = runner.run(
            arguments.names or known,
            form=arguments.form,
            rounds=arguments.rounds,
            folder=arguments.folder,
            settings=settings,
            budget=budget,
            out=arguments.results,
        )
    return conclude(results, arguments.report)


def is_growth(results: runner.Results) -> bool:
    """Whether it was a run of `grow`."""
    return set(results.workloads) <= set(workload.names(growth))


def conclude(results: runner.Results, path: Path | None) -> int:
    """Print the ratios, write the report if it is asked for; 1 where a measurement failed."""
    from bench import report  # noqa: PLC0415 - its imports are not needed to run

    print()
    for each, verdict in report.ratios(results):
        held = {True: "yes", False: "NO", None: "-"}[verdict.holds]
        print(
            f"{held:4} {each.name:10} {verdict.goal.what}:"
            f" {report.number(verdict.ratio)} (goal {verdict.goal.bound})"
        )
    if path is not None:
        (report.write_growth if is_growth(results) else report.write)(results, path)
        print(f"\nWritten: {path}")
    for failure in results.failures:
        print(f"FAILED {failure.workload}: {failure.side}: {failure.error}", file=sys.stderr)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
