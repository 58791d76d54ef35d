"""The pictures of the state machine are those of its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tools import state_diagram

if TYPE_CHECKING:
    import psycopg

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def machine(db: psycopg.Connection) -> state_diagram.Machine:
    """The machine that a migrated database enforces."""
    return state_diagram.read_machine(db)


@pytest.mark.parametrize("name", state_diagram.TARGETS)
def test_the_documents_show_the_rows_of_the_database(machine, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert state_diagram.MARKED.search(text), f"{name} has no markers"
    assert state_diagram.fill(text, state_diagram.parts(machine, name)) == text, (
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


def test_the_picture_has_every_state_and_every_arrow(machine):
    drawn = state_diagram.drawing(machine)
    assert (ROOT / state_diagram.PICTURE).read_text(encoding="utf-8") == drawn
    svg = ET.fromstring(drawn)
    texts = [one.text for one in svg.iter(f"{SVG}text")]
    assert {state.status for state in machine.states} | set(state_diagram.FRAMES) <= set(texts)
    arrows = 0
    for origin, targets, by in state_diagram.move_rows(machine):
        starts = 1 if origin in state_diagram.FRAMES else len(origin.split(", "))
        arrows += starts * len(targets.split(", "))
        assert by in texts
    # One path more is the tip of them all.
    assert len(list(svg.iter(f"{SVG}path"))) == arrows + 1


def test_a_transition_that_cannot_be_drawn_is_no_picture(machine):
    made_up = state_diagram.Move(frozenset({"CANCELING"}), ("SUCCESS",), "a resurrection")
    with pytest.raises(SystemExit, match="CANCELING -> SUCCESS"):
        state_diagram.drawing(replace(machine, moves=(*machine.moves, made_up)))


def test_a_state_in_the_wrong_frame_is_no_picture(machine):
    states = tuple(
        replace(state, sets=("final",)) if state.status == "UNKNOWN" else state
        for state in machine.states
    )
    with pytest.raises(SystemExit, match="UNKNOWN is final"):
        state_diagram.drawing(replace(machine, states=states))


def test_a_changed_row_makes_the_check_fail(database, admin, capsys, tmp_path, monkeypatch):
    for name in (*state_diagram.TARGETS, state_diagram.PICTURE):
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
    assert "out of date: docs/states.svg, docs/states.md; run" in capsys.readouterr().err
    assert state_diagram.main(arguments) == 0
    for name in ("docs/states.svg", "docs/states.md"):
        assert "a whim" in (tmp_path / name).read_text(encoding="utf-8")
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
