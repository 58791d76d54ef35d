"""Draw the state machine from its rows into the documentation.

    python tools/state_diagram.py            # rewrite what stands between the markers
    python tools/state_diagram.py --check    # change nothing; fail where a text is out of date
    python tools/state_diagram.py --print    # the compact tables, for a terminal

The rows are those of pyjobs_internal.job_state and job_transition. Without --database-url an
embedded server is started for a moment and filled from migrations/ and sql/data/: PostgreSQL itself
reads the SQL, so the picture cannot differ from what the guard enforces.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import psycopg
from psycopg.rows import dict_row
from rich import box
from rich.console import Console
from rich.table import Table

from pyjobs import embedded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "docs/states.svg"
# Files that carry tables between markers, and show the picture.
TARGETS = ("docs/states.md", "README.md")
SOURCES = ("migrations/0001.types.sql", "migrations/0002.tables.sql", "sql/data/job_state.sql")
SETS = ("claimable", "finalizable", "running", "final")
MARKED = re.compile(
    r"(?P<begin><!-- state machine: (?P<part>\w+), by tools/state_diagram\.py -->\n)"
    r"(?P<body>.*?)"
    r"(?P<end><!-- end -->)",
    re.DOTALL,
)


Point = tuple[int, int]

# Where things stand in the picture: the middle of each state's box, and the frame of each set
# (left, top, right, bottom). Which state is in which frame is checked against the rows.
WIDTH, HEIGHT = 960, 424
BOX = (112, 34)
PLACES: dict[str, Point] = {
    "CREATED": (96, 84),
    "PENDING": (96, 310),
    "STARTED": (300, 310),
    "RETRY": (300, 200),
    "UNKNOWN": (588, 200),
    "CANCELING": (588, 310),
    "SUCCESS": (866, 84),
    "FAILURE": (866, 150),
    "REVOKED": (866, 310),
}
FRAMES = {
    "finalizable": (12, 40, 392, 408),
    "claimable": (24, 136, 376, 392),
    "final": (788, 40, 948, 408),
}
# How an arrow goes, and where its words stand if it has any of its own: by what it starts from, a
# state or a set, and where it ends.
ROUTES: dict[tuple[str, str], tuple[tuple[Point, ...], Point | None]] = {
    ("CREATED", "PENDING"): (((96, 101), (96, 293)), (126, 214)),
    ("PENDING", "STARTED"): (((152, 310), (244, 310)), (198, 302)),
    ("RETRY", "STARTED"): (((300, 217), (300, 293)), (252, 258)),
    ("finalizable", "SUCCESS"): (((392, 84), (810, 84)), (588, 76)),
    ("finalizable", "FAILURE"): (((392, 84), (756, 84), (780, 146), (810, 146)), None),
    ("finalizable", "CANCELING"): (((392, 310), (532, 310)), (460, 302)),
    ("finalizable", "REVOKED"): (((392, 376), (756, 376), (780, 318), (810, 318)), (588, 392)),
    ("claimable", "UNKNOWN"): (((376, 192), (532, 192)), (460, 184)),
    ("UNKNOWN", "RETRY"): (((532, 208), (356, 208)), (460, 223)),
    ("UNKNOWN", "FAILURE"): (((644, 192), (756, 192), (780, 154), (810, 154)), (696, 184)),
    ("UNKNOWN", "REVOKED"): (((644, 208), (756, 208), (780, 302), (810, 302)), (700, 223)),
    ("CANCELING", "REVOKED"): (((644, 310), (810, 310)), (644, 344)),
    ("final", "RETRY"): (((866, 40), (866, 18), (300, 18), (300, 183)), (588, 32)),
}
_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
  aria-label="The states of a job and what leads from one to another">
<!-- Made by tools/state_diagram.py from the rows of sql/data/job_state.sql: do not edit. -->
<style>
  text {{ font: 13px system-ui, sans-serif; fill: #1f2933; text-anchor: middle; }}
  text.set {{ font-style: italic; fill: #52606d; text-anchor: end; }}
  text.state {{ font-weight: 600; }}
  text.by {{ font-size: 12px; paint-order: stroke; stroke: #fff; stroke-width: 4px; }}
  rect.paper {{ fill: #fff; }}
  rect.finalizable {{ fill: #f5f7fa; stroke: #9aa5b1; }}
  rect.claimable {{ fill: #e6f2ff; stroke: #7fa8d1; }}
  rect.final {{ fill: #f0f4ec; stroke: #93a97f; }}
  rect.state {{ fill: #fff; stroke: #3e4c59; stroke-width: 1.5; }}
  path {{ fill: none; stroke: #3e4c59; stroke-width: 1.4; marker-end: url(#tip); }}
  #tip path {{ fill: #3e4c59; stroke: none; marker-end: none; }}
</style>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"
  orient="auto"><path d="M 0 1 L 10 5 L 0 9 z"/></marker></defs>
<rect class="paper" width="{width}" height="{height}"/>
{shapes}
</svg>
"""


@dataclass(frozen=True)
class State:
    """A row of job_state."""

    status: str
    sets: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class Move:
    """Transitions that are the same but for where they start and end."""

    origin: frozenset[str]
    targets: tuple[str, ...]
    by: str


@dataclass(frozen=True)
class Machine:
    """All of it, in the order of the type job_status."""

    states: tuple[State, ...]
    moves: tuple[Move, ...]

    def members(self, name: str) -> frozenset[str]:
        """The states of a named set."""
        return frozenset(state.status for state in self.states if name in state.sets)

    def name_of(self, group: frozenset[str]) -> str:
        """The named set with these states, or the states in their order."""
        if len(group) > 1:
            for name in SETS:
                if self.members(name) == group:
                    return name
        return ", ".join(state.status for state in self.states if state.status in group)


def read_machine(connection: psycopg.Connection[tuple[str, ...]]) -> Machine:
    """Read the rows, in the order of the type, and put together what is alike."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute("select * from pyjobs_internal.job_state s order by s.status")
        states = tuple(
            State(row["status"], tuple(name for name in SETS if row[name]), row["meaning"])
            for row in rows
        )
    origins: dict[tuple[str, str], set[str]] = defaultdict(set)
    for start, end, by in connection.execute(
        "select t.from_status::text, t.to_status::text, t.by from pyjobs_internal.job_transition t"
        " order by t.from_status, t.to_status"
    ):
        origins[end, by].add(start)
    targets: dict[tuple[frozenset[str], str], list[str]] = defaultdict(list)
    for (end, by), starts in origins.items():
        targets[frozenset(starts), by].append(end)
    return Machine(
        states, tuple(Move(group, tuple(ends), by) for (group, by), ends in targets.items())
    )


def read_source() -> Machine:
    """Read the rows that the files make, in a server of a moment."""
    with embedded.server(settings=embedded.THROWAWAY) as pg, psycopg.connect(pg.url()) as conn:
        for name in SOURCES:
            conn.execute((ROOT / name).read_text(encoding="utf-8"))
        return read_machine(conn)


def drawing(machine: Machine) -> str:
    """The picture, as SVG. A transition without a route is an error: nothing is left out."""
    shapes = [_frame(name, machine.members(name)) for name in FRAMES]
    for move in machine.moves:
        origin = machine.name_of(move.origin)
        starts = [origin] if origin in FRAMES else origin.split(", ")
        shapes += [_arrow(start, end, move.by) for start in starts for end in move.targets]
    shapes += [_box(state) for state in machine.states]
    return _SVG.format(width=WIDTH, height=HEIGHT, shapes="\n".join(shapes))


def _frame(name: str, members: frozenset[str]) -> str:
    left, top, right, bottom = FRAMES[name]
    for status in members:
        x, y = PLACES[status]
        if not (left < x < right and top < y < bottom):
            raise SystemExit(f"{status} is {name}: put it into that frame in {__file__}")
    return (
        f'<rect class="{name}" x="{left}" y="{top}" width="{right - left}"'
        f' height="{bottom - top}" rx="8"/>\n'
        f'<text class="set" x="{right - 8}" y="{top + 16}" text-anchor="end">{name}</text>'
    )


def _box(state: State) -> str:
    x, y = PLACES[state.status]
    return (
        f'<g><title>{escape(state.meaning)}</title><rect class="state" x="{x - BOX[0] // 2}"'
        f' y="{y - BOX[1] // 2}" width="{BOX[0]}" height="{BOX[1]}" rx="4"/>'
        f'<text class="state" x="{x}" y="{y + 5}">{state.status}</text></g>'
    )


def _arrow(start: str, end: str, by: str) -> str:
    if (start, end) not in ROUTES:
        raise SystemExit(f"{start} -> {end} ({by}) has no route in {__file__}: give it one")
    points, words = ROUTES[start, end]
    path = " L ".join(f"{x} {y}" for x, y in points)
    drawn = f'<path d="M {path}"/>'
    if words is not None:
        drawn += f'<text class="by" x="{words[0]}" y="{words[1]}">{escape(by)}</text>'
    return drawn


def state_rows(machine: Machine) -> list[tuple[str, ...]]:
    return [(state.status, ", ".join(state.sets), state.meaning) for state in machine.states]


def move_rows(machine: Machine) -> list[tuple[str, ...]]:
    return [
        (machine.name_of(move.origin), ", ".join(move.targets), move.by) for move in machine.moves
    ]


STATE_HEADER = ("state", "sets", "meaning")
MOVE_HEADER = ("from", "to", "by")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parts(machine: Machine, target: str) -> dict[str, str]:
    """What a file can ask for between its markers."""
    picture = os.path.relpath(PICTURE, Path(target).parent)
    return {
        "diagram": f"![The states of a job]({picture})\n",
        "states": markdown_table(STATE_HEADER, state_rows(machine)),
        "transitions": markdown_table(MOVE_HEADER, move_rows(machine)),
    }


def fill(text: str, made: dict[str, str]) -> str:
    """Put the parts between their markers."""
    return MARKED.sub(lambda m: f"{m['begin']}\n{made[m['part']]}\n{m['end']}", text)


def show(machine: Machine) -> None:
    console = Console()
    for header, rows in (
        (STATE_HEADER, state_rows(machine)),
        (MOVE_HEADER, move_rows(machine)),
    ):
        table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database-url", default=os.environ.get("PYJOBS_DATABASE_URL"))
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="fail where a text is out of date")
    mode.add_argument("--print", action="store_true", help="print the tables, change nothing")
    options = parser.parse_args(arguments)

    if options.database_url:
        with psycopg.connect(options.database_url) as connection:
            machine = read_machine(connection)
    else:
        machine = read_source()
    if options.print:
        show(machine)
        return 0
    made = {PICTURE: drawing(machine)}
    for name in TARGETS:
        text = (ROOT / name).read_text(encoding="utf-8")
        if MARKED.search(text) is None:
            print(f"{name}: has no markers for the state machine", file=sys.stderr)
            return 1
        made[name] = fill(text, parts(machine, name))
    stale = [name for name, text in made.items() if _read(ROOT / name) != text]
    for name in [] if options.check else stale:
        (ROOT / name).write_text(made[name], encoding="utf-8")
        print(f"{name}: rewritten")
    if options.check and stale:
        print(
            f"out of date: {', '.join(stale)}; run python tools/state_diagram.py", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
