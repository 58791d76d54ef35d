"""The patches, what they say of themselves, and how they are applied."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
SCHEMA = ("sql", "migrations")

_FIELD = re.compile(r"^(Matters|Killed-by|Unit-tests): *(.*)$")
_NAME = re.compile(r"\d{3}-[a-z0-9-]+")


class PatchError(Exception):
    """A patch that says too little of itself, or that no longer applies."""


@dataclasses.dataclass(frozen=True)
class Killer:
    """A check that must fail: a test's node id, or a scenario of the explorer.

    ``scenario`` is explored up to ``bound`` preemptions and ``limit`` schedules, or, where it is a
    line that the explorer prints, replayed.
    """

    test: str = ""
    scenario: str = ""
    bound: int = 2
    limit: int = 600

    @classmethod
    def parse(cls, text: str) -> Killer:
        """From ``tests/test_x.py::test_y`` or ``explorer NAME [bound=N] [limit=N]``."""
        word, _, rest = text.partition(" ")
        if word != "explorer":
            if not re.fullmatch(r"tests/[\w/]+\.py::[^:]+", text):
                raise PatchError(f"no killer: {text}")
            return cls(test=text)
        name, *options = rest.split()
        given = dict(o.split("=", 1) for o in options)
        if given.keys() - {"bound", "limit"}:
            raise PatchError(f"no killer: {text}")
        return cls("", name, int(given.get("bound", 2)), int(given.get("limit", 600)))

    def __str__(self) -> str:
        return self.test or f"explorer: {self.scenario}"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One patch."""

    path: Path
    what: str
    matters: str
    killer: Killer
    unit_tests: str  # "killed", "survives", or "?" where nobody has tried yet
    diff: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def files(self) -> list[str]:
        """What it changes."""
        return re.findall(r"^\+\+\+ b/(\S+)", self.diff, re.MULTILINE)

    def apply(self, target: Path) -> Path:
        """A copy of what is deployed, with this break in it; ``target`` is made."""
        copy_schema(target)
        # No fuzz: a patch whose surroundings have changed has to be looked at.
        done = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", str(self.path)],
            check=False,
            cwd=target,
            env=environment(target),
            capture_output=True,
            text=True,
        )
        if done.returncode or not self.files:
            raise PatchError(f"{self.name} does not apply: {done.stderr.strip() or 'no change'}")
        return target

    def refresh(self, target: Path) -> bool:
        """Make the patch anew where the lines around it have changed; whether that could be done.

        What it breaks has to be there still: look at the result.
        """
        copy_schema(target)

        def git(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["git", *arguments],
                check=False,
                cwd=target,
                env=environment(target),
                capture_output=True,
                text=True,
            )

        git("init", "--quiet")
        git("add", "--all")
        git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message=x")
        if all(git("apply", f"-C{n}", "--recount", str(self.path)).returncode for n in (2, 1)):
            return False
        diff = git("diff", "--no-color", "--no-ext-diff").stdout
        lines = [line for line in diff.splitlines(True) if not line.startswith("index ")]
        text = self.path.read_text("utf-8").partition("diff --git ")[0]
        self.path.write_text(text + "".join(lines), "utf-8")
        return True

    def say(self, unit_tests: str) -> None:
        """Write down whether the everyday tests notice it."""
        text = self.path.read_text("utf-8")
        text = re.sub(r"^Unit-tests:.*$", f"Unit-tests: {unit_tests}", text, flags=re.MULTILINE)
        self.path.write_text(text, "utf-8")


def environment(target: Path) -> dict[str, str]:
    """For git, so that it takes ``target`` for no part of a repository around it."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_CEILING_DIRECTORIES": str(target.resolve().parent),
    }


def copy_schema(target: Path) -> Path:
    """A copy of ``sql/`` and ``migrations/``."""
    for folder in SCHEMA:
        shutil.copytree(ROOT / folder, target / folder)
    return target


def read(path: Path) -> Mutant:
    """A patch with its head."""
    head, mark, diff = path.read_text("utf-8").partition("diff --git ")
    if not mark or not _NAME.fullmatch(path.stem):
        raise PatchError(f"{path.name}: no diff, or no name of the form 001-what-is-broken")
    fields = {"what": ""}
    at = "what"
    for line in head.splitlines():
        found = _FIELD.match(line)
        if found:
            at = found[1]
            fields[at] = found[2]
        else:
            fields[at] = f"{fields[at]} {line}".strip()
    missing = {"Matters", "Killed-by", "Unit-tests"} - fields.keys()
    if missing or not all(fields.values()):
        raise PatchError(f"{path.name}: its head does not say {', '.join(sorted(missing)) or '?'}")
    return Mutant(
        path,
        fields["what"],
        fields["Matters"],
        Killer.parse(fields["Killed-by"]),
        fields["Unit-tests"],
        mark + diff,
    )


def every() -> list[Mutant]:
    """All of them, in the order of their numbers."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def head(what: str, matters: str, killed_by: str, unit_tests: str = "?") -> str:
    """The comment that a patch begins with."""
    parts = [what, f"Matters: {matters}"]
    wrapped = [textwrap.fill(p, 98, break_long_words=False, break_on_hyphens=False) for p in parts]
    return "\n".join([*wrapped, f"Killed-by: {killed_by}", f"Unit-tests: {unit_tests}", ""])
