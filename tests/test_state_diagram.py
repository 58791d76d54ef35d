"""The pictures of the state machine are those of its rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools import state_diagram

if TYPE_CHECKING:
    import psycopg

ROOT = Path(__file__).parent.parent


@pytest.fixture
def machine(db: psycopg.Connection) -> state_diagram.Machine:
    """The machine that a migrated database enforces."""
    return state_diagram.read_machine(db)


@pytest.mark.parametrize("name", state_diagram.TARGETS)
def test_the_documents_show_the_rows_of_the_database(machine, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert state_diagram.MARKED.search(text), f"{name} has no markers"
    assert state_diagram.fill(text, state_diagram.parts(machine)) == text, (
        "run: python tools/state_diagram.py"
    )


def test_the_source_files_alone_give_the_same_machine(machine):
    assert state_diagram.read_source() == machine


def test_no_transition_is_lost_or_made_up(machine, db):
    """Undo the grouping: what the tables say is what the rows say."""
    rows = db.execute(
        "select from_status::text, to_status::text, by from pyjobs_internal.job_transition"
    ).fetchall()
    told = []
    for origin, targets, by in state_diagram.move_rows(machine):
        named = machine.members(origin) if origin in state_diagram.SETS else origin.split(", ")
        told += [(start, end, by) for start in named for end in targets.split(", ")]
    assert sorted(told) == sorted(rows)


def test_the_diagram_draws_every_state_once_and_every_arrow(machine):
    drawn = state_diagram.mermaid(machine)
    nodes = re.findall(r"^ +([A-Z]+)$", drawn, re.MULTILINE)
    assert sorted(nodes) == sorted(state.status for state in machine.states)
    arrows = re.findall(r'^ +(.+) -->\|"(.+)"\| (.+)$', drawn, re.MULTILINE)
    assert len(arrows) == len(machine.moves)
    frames = re.findall(r"subgraph (\w+)", drawn)
    for origin, _, targets in arrows:
        assert set(origin.split(" & ")) <= {*nodes, *frames}
        assert set(targets.split(" & ")) <= set(nodes)


def test_a_changed_row_makes_the_check_fail(database, admin, capsys, tmp_path, monkeypatch):
    for name in state_diagram.TARGETS:
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(state_diagram, "ROOT", tmp_path)
    arguments = ["--database-url", database.admin_dsn]
    assert state_diagram.main([*arguments, "--check"]) == 0
    admin.execute(
        "update pyjobs_internal.job_transition set by = 'a whim'"
        " where from_status = 'CREATED' and to_status = 'PENDING'"
    )
    assert state_diagram.main([*arguments, "--check"]) == 1
    assert "out of date: docs/states.md, README.md" in capsys.readouterr().err
    assert state_diagram.main(arguments) == 0
    assert '-->|"a whim"| PENDING' in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert state_diagram.main([*arguments, "--check"]) == 0


def test_it_prints_tables_for_a_terminal(database, capsys):
    assert state_diagram.main(["--database-url", database.dsn, "--print"]) == 0
    shown = capsys.readouterr().out
    assert "set aside until an operator" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_markers_it_says_so(database, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "states.md").write_text("# Nothing here\n", encoding="utf-8")
    monkeypatch.setattr(state_diagram, "ROOT", tmp_path)
    assert state_diagram.main(["--database-url", database.dsn]) == 1
    assert "docs/states.md: has no markers" in capsys.readouterr().err
