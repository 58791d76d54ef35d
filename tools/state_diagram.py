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

import psycopg
from psycopg.rows import dict_row
from rich import box
from rich.console import Console
from rich.table import Table

from pyjobs import embedded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
# Files that carry the picture, and the parts of it that they want, between markers of that name.
TARGETS = ("docs/states.md", "README.md")
SOURCES = ("migrations/0001.types.sql", "migrations/0002.tables.sql", "sql/data/job_state.sql")
SETS = ("claimable", "finalizable", "running", "final")
MARKED = re.compile(
    r"(?P<begin><!-- state machine: (?P<part>\w+), by tools/state_diagram\.py -->\n)"
    r"(?P<body>.*?)"
    r"(?P<end><!-- end -->)",
    re.DOTALL,
)


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


def mermaid(machine: Machine) -> str:
    """A flowchart: forges draw it. An arrow from a frame holds for each state in the frame."""
    claimable, finalizable, final = map(machine.members, ("claimable", "finalizable", "final"))
    framed = finalizable | final
    lines = ["```mermaid", "flowchart LR"]
    lines += ["    subgraph finalizable", "        direction TB"]
    lines += [f"        {status}" for status in _ordered(machine, finalizable - claimable)]
    lines += ["        subgraph claimable", "            direction TB"]
    lines += [f"            {status}" for status in _ordered(machine, claimable)]
    lines += ["        end", "    end"]
    lines += [f"    {s.status}" for s in machine.states if s.status not in framed]
    lines += ["    subgraph final", "        direction TB"]
    lines += [f"        {status}" for status in _ordered(machine, final)]
    lines += ["    end"]
    frames = {claimable: "claimable", finalizable: "finalizable", final: "final"}
    for move in machine.moves:
        starts = [frames[move.origin]] if move.origin in frames else _ordered(machine, move.origin)
        lines.append(f'    {" & ".join(starts)} -->|"{move.by}"| {" & ".join(move.targets)}')
    lines.append("```")
    return "\n".join(lines) + "\n"


def _ordered(machine: Machine, group: Iterable[str]) -> list[str]:
    wanted = set(group)
    return [state.status for state in machine.states if state.status in wanted]


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


def parts(machine: Machine) -> dict[str, str]:
    """What a file can ask for between its markers."""
    return {
        "diagram": mermaid(machine),
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
    made = parts(machine)
    stale = []
    for name in TARGETS:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        if MARKED.search(old) is None:
            print(f"{name}: has no markers for the state machine", file=sys.stderr)
            return 1
        new = fill(old, made)
        if new != old:
            stale.append(name)
            if not options.check:
                path.write_text(new, encoding="utf-8")
                print(f"{name}: rewritten")
    if options.check and stale:
        print(
            f"out of date: {', '.join(stale)}; run python tools/state_diagram.py", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
