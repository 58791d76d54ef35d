"""Runs a killer, in a process of its own, on the schema in a folder, and judges what came of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.mutants.catalogue import ROOT, Killer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The tests that people run every day, and that call the functions.
UNIT_TESTS = (
    "tests/test_random_jobs.py", "tests/test_races.py", "tests/test_serving.py",
    "tests/test_states.py", "tests/test_background.py", "tests/test_offers_are_kept.py",
    "tests/test_crash.py", "tests/test_bad_input.py", "tests/test_roles.py",
    "tests/test_interface.py", "tests/test_readers_audit.py", "tests/test_readers_explain.py",
    "tests/test_readers_progress.py", "tests/test_readers_queues.py",
    "tests/test_readers_views.py", "tests/test_low_water.py", "tests/test_hand_over.py",
    "tests/test_by_sets.py", "tests/test_holes_of_others.py",
)  # fmt: skip
# Longer than that takes no killer: the mutant hangs.
PATIENCE = 240.0

# What says that a mutant is no program, and not that it breaks a rule.
_ACCIDENTS = {"SyntaxError", "ImportError", "NameError", "AttributeError", "MigrationError"}
_BROKEN_SQL = re.compile(r"\b(42(?!501)[0-9A-Z]{3}|XX\d{3})\b")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a killer came to."""

    killed: bool
    why: str  # in one line
    trouble: bool = False  # neither killed nor passed
    schedules: int = 0  # that the explorer went through
    seconds: float = 0
    test: str = ""  # the first that failed

    def __str__(self) -> str:
        if self.trouble:
            return "TROUBLE"
        return "killed" if self.killed else "SURVIVES"


@dataclasses.dataclass(frozen=True)
class Servers:
    """Two servers: the explorer's has settings of its own."""

    tests: str
    explorer: str


def kill(killer: Killer, root: Path, servers: Servers, label: str) -> Verdict:
    """The killer's verdict on the schema in ``root``."""
    if killer.test:
        return run_tests([killer.test], root, servers.tests, label, "-x")
    return _explore(killer, root, servers.explorer, label)


def run_tests(
    tests: Sequence[str],
    root: Path,
    url: str | None,
    label: str,
    *options: str,
    patience: float = PATIENCE,
) -> Verdict:
    """Run these with pytest, on the server of the URL or on one of their own."""
    report = root / "report.json"
    given = {
        "PYJOBS_TEST_ROOT": str(root),
        "PYJOBS_TEST_RUN": label,
        "MUTANT_REPORT": str(report),
        **({"PYJOBS_TEST_URL": url} if url else {}),
    }
    command = ["-m", "pytest", "-p", "tests.mutants.plugin", "-p", "no:cacheprovider", "-q"]
    began = time.monotonic()
    code, said = _run([*command, *options, *tests], given, patience)
    spent = time.monotonic() - began
    if code is None:
        return Verdict(False, f"no end after {patience:.0f} s", trouble=True, seconds=spent)
    if not report.is_file():
        return Verdict(False, _last(said), trouble=True, seconds=spent)
    found: list[dict[str, Any]] = json.loads(report.read_text("utf-8"))
    failed = [r for r in found if r["outcome"] == "failed"]
    if not failed:
        passed = code == 0 and bool(found)
        return Verdict(False, "" if passed else _last(said), not passed, seconds=spent)
    first = next((r for r in failed if not is_accident(r)), failed[0])
    why = f"{first.get('sqlstate') or first.get('type')}: {_line(first.get('text', ''))}"
    return Verdict(
        not is_accident(first), why, is_accident(first), seconds=spent, test=first["test"]
    )


def is_accident(report: dict[str, Any]) -> bool:
    """Whether a failure says that a mutant is no program, and not that a rule is broken."""
    return (
        report["when"] == "setup"
        or report.get("type") in _ACCIDENTS
        or bool(_BROKEN_SQL.search(report.get("sqlstate", "")))
        or str(report.get("text", "")).startswith("Timeout")
    )


def _explore(killer: Killer, root: Path, url: str, label: str) -> Verdict:
    began = time.monotonic()
    command = ["-m", "tests.mutants.explore", str(root), url, f"explorer_{label}"]
    code, said = _run(
        [*command, killer.scenario, str(killer.bound), str(killer.limit)], {}, PATIENCE
    )
    spent = time.monotonic() - began
    if code is None:
        return Verdict(False, f"no end after {PATIENCE:.0f} s", trouble=True, seconds=spent)
    if code != 0:
        return Verdict(False, _last(said), trouble=True, seconds=spent)
    answer = json.loads(said.splitlines()[-1])
    problems = answer["problems"]
    schedules = answer["schedules"]
    if not problems:
        return Verdict(False, "", schedules=schedules, seconds=spent)
    broken = all(_BROKEN_SQL.search(p) for p in problems)
    why = f"schedule {schedules}: {_line(problems[0])}"
    return Verdict(not broken, why, broken, schedules=schedules, seconds=spent)


def _run(arguments: list[str], given: dict[str, str], patience: float) -> tuple[int | None, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment.update(given)
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


def _line(text: str) -> str:
    line = next((x.strip() for x in text.splitlines() if x.strip()), "")
    return line if len(line) <= 160 else line[:157] + "..."


def _last(said: str) -> str:
    lines = [x for x in said.splitlines() if x.strip()]
    return _line(lines[-1]) if lines else "it said nothing"
