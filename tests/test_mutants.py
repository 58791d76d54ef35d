"""The mutants are as they say; that each is killed, `make mutants` shows."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.explorer import scenarios
from tests.mutants import catalogue, kill, table
from tests.mutants.catalogue import Killer, PatchError

MUTANTS = catalogue.every()


def test_there_are_many_and_each_has_a_name_and_a_number_of_its_own():
    assert len(MUTANTS) >= 30
    for part in (0, 2):
        parts = [m.name.partition("-")[part] for m in MUTANTS]
        assert len(set(parts)) == len(MUTANTS)
    assert len({m.diff for m in MUTANTS}) == len(MUTANTS)


def test_every_patch_applies_to_what_ships(tmp_path):
    catalogue.copy_schema(tmp_path)
    for mutant in MUTANTS:
        assert mutant.files
        done = subprocess.run(
            ["git", "apply", "--check", str(mutant.path)],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            env={**catalogue.environment(tmp_path)},
        )
        assert done.returncode == 0, f"{mutant.name}: {done.stderr}"


def test_a_patch_that_no_longer_applies_is_refused(tmp_path):
    mutant = next(m for m in MUTANTS if "clock" in m.name)
    text = mutant.path.read_text("utf-8").replace("returns timestamptz", "returns timestamp")
    changed = tmp_path / mutant.path.name
    changed.write_text(text, "utf-8")
    with pytest.raises(PatchError, match="does not apply"):
        catalogue.read(changed).apply(tmp_path / "copy")


def test_a_patch_that_says_too_little_is_refused(tmp_path):
    for field in ("Matters", "Killed-by", "Unit-tests"):
        text = re.sub(f"^{field}:", "Also:", MUTANTS[0].path.read_text("utf-8"), flags=re.MULTILINE)
        (tmp_path / "001-a.patch").write_text(text, "utf-8")
        with pytest.raises(PatchError, match=field):
            catalogue.read(tmp_path / "001-a.patch")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_killer_that_is_named_exists(mutant):
    killer = mutant.killer
    if killer.scenario:
        name = killer.scenario.partition(":")[0]
        assert scenarios.find(name).name == name
        return
    path, _, test = killer.test.partition("::")
    text = (catalogue.ROOT / path).read_text("utf-8")
    assert f"\ndef {test.partition('[')[0]}(" in text


@pytest.mark.parametrize(
    ("report", "accident"),
    [
        ({"when": "call", "type": "AssertionError", "text": "assert 1 == 2"}, False),
        ({"when": "teardown", "type": "AssertionError", "text": "rule 4"}, False),
        ({"when": "call", "type": "StaleLease", "sqlstate": "PJ001"}, False),
        ({"when": "call", "type": "InsufficientPrivilege", "sqlstate": "42501"}, False),
        ({"when": "setup", "type": "AssertionError", "text": "assert 1 == 2"}, True),
        ({"when": "call", "type": "UndefinedColumn", "sqlstate": "42703"}, True),
        ({"when": "call", "type": "InternalError", "sqlstate": "XX000"}, True),
        ({"when": "call", "type": "NameError", "text": "name 'x' is not defined"}, True),
        (
            {"when": "call", "type": "Failed", "text": "Timeout (>180.0s) from pytest-timeout."},
            True,
        ),
    ],
)
def test_an_accident_is_no_kill(report, accident):
    assert kill.is_accident(report) == accident


def test_a_killer_is_a_test_or_a_scenario():
    assert Killer.parse("tests/test_a.py::test_b[1-2]") == Killer(
        test="tests/test_a.py::test_b[1-2]"
    )
    assert Killer.parse("explorer last-two bound=1") == Killer("", "last-two", 1, 600)
    for text in ("test_b", "explorer last-two depth=1", "tests/test_a.py"):
        with pytest.raises(PatchError):
            Killer.parse(text)


def test_the_page_is_up_to_date():
    assert table.PAGE.read_text("utf-8") == table.page(MUTANTS), (
        "run: python -m tests.mutants --table"
    )
