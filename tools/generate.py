"""Make pyjobs/_sync from pyjobs/_async, by unasync; with --check say whether that has been done.

    python tools/generate.py [--check]

The asynchronous files are the source. What differs beyond `async` and `await` is listed in NAMES;
what cannot be one source (tasks and threads) is in pyjobs/_aio.py and pyjobs/_threads.py.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "pyjobs" / "_async"
TARGET = ROOT / "pyjobs" / "_sync"
NAMES = {
    "AsyncClient": "Client",
    "AsyncConnection": "Connection",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncCursor": "Cursor",
    "AsyncExitStack": "ExitStack",
    "AsyncHandler": "Handler",
    "AsyncLazyConnection": "LazyConnection",
    "AsyncRetrying": "Retrying",
    "AsyncScope": "Scope",
    "AsyncTransaction": "Transaction",
    "AsyncWorker": "Worker",
    "_aio": "_threads",
    "_async": "_sync",
    "asyncio": "time",
    "enter_async_context": "enter_context",
}
HEAD = "# Made from {source} by tools/generate.py: edit that one, and run it.\n"


def generate(target: Path) -> None:
    """Write the synchronous twin of every file into the folder `target`."""
    with tempfile.TemporaryDirectory() as folder:
        rule = unasync.Rule(f"{SOURCE}/", f"{folder}/", additional_replacements=NAMES)
        unasync.unasync_files([str(path) for path in SOURCE.glob("*.py")], [rule])
        target.mkdir(exist_ok=True)
        for path in Path(folder).glob("*.py"):
            source = (SOURCE / path.name).relative_to(ROOT)
            text = HEAD.format(source=source.as_posix()) + path.read_text("utf-8")
            (target / path.name).write_text(text, "utf-8")
    fix = ["check", "--quiet", "--fix"]
    steps = (
        [*fix, "--select", "F401,I"],
        [*fix, "--select", "UP028", "--unsafe-fixes"],  # yield from, which async cannot
        ["format", "--quiet"],
    )
    for step in steps:
        command = [sys.executable, "-m", "ruff", *step, "--config", str(ROOT / "pyproject.toml")]
        subprocess.run([*command, str(target)], check=True, cwd=ROOT)


def compare(fresh: Path, stored: Path) -> list[str]:
    """Return the differences between two folders of Python files, as a diff."""
    lines: list[str] = []
    for name in sorted({path.name for folder in (fresh, stored) for path in folder.glob("*.py")}):
        old, new = (
            path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
            for path in (stored / name, fresh / name)
        )
        where = (stored / name).relative_to(ROOT).as_posix()
        lines += difflib.unified_diff(old, new, where, f"{where} (generated)")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if it would")
    if not parser.parse_args().check:
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory(dir=ROOT / "pyjobs", prefix="_check") as folder:
        # Inside the package, so that ruff sorts its imports by the same rules.
        generate(Path(folder))
        difference = compare(Path(folder), TARGET)
    sys.stdout.writelines(difference)
    if difference:
        print("pyjobs/_sync is not what pyjobs/_async makes: run python tools/generate.py")
    return 1 if difference else 0


if __name__ == "__main__":
    raise SystemExit(main())
