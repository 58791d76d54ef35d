"""The page that says why pyjobs may be believed names checks that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.explorer import scenarios

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "correctness.md").read_text("utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "test"), TESTS)
def test_every_test_that_it_names_is_there(file, test):
    text = (ROOT / file).read_text("utf-8")
    assert f"def {test or 'test_'}" in text or not Path(file).name.startswith("test_")


def _named(kind: str) -> set[str]:
    """What stands in backticks behind "mutants" or "schedules", up to the end of that list."""
    found = set()
    for listed in re.findall(rf"{kind}s? ((?:`[\w-]+`(?:, )?)+)", PAGE.replace("\n", " ")):
        found |= set(re.findall(r"`([\w-]+)`", listed))
    return found


def test_every_mutant_that_it_names_is_there():
    patches = {path.stem.partition("-")[2] for path in (ROOT / "tests" / "mutants").glob("*.patch")}
    assert len(_named("mutant")) > 20
    assert _named("mutant") <= patches


def test_every_schedule_that_it_names_is_there():
    assert len(_named("schedule")) > 3
    for name in _named("schedule"):
        scenarios.find(name)


def test_every_rule_has_its_place():
    assert [int(n) for n in re.findall(r"^### (\d+)\. ", PAGE, re.MULTILINE)] == list(range(1, 13))
