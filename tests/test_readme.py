"""The README's examples work as they are written, and what it points to is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyjobs

if TYPE_CHECKING:
    import psycopg
    import pytest

    from tests.support import Cluster

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, nth: int = 0) -> str:
    """The nth fenced block of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[nth]


def test_the_psql_example_ends_its_job_with_the_last_batch(
    dsn: str, cluster: Cluster, db: psycopg.Connection[Any]
) -> None:
    """psql runs the block as it stands and stops at no error."""
    done = subprocess.run(
        [cluster.psql_path, "-X", "-v", "ON_ERROR_STOP=1", dsn],
        input=block("sql"),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"detections": 7' in done.stdout
    assert db.execute("select name, status::text, run from pyjobs.job").fetchall() == [
        (None, "SUCCESS", 1)
    ]
    failed = db.execute("select sum(failed_count) from pyjobs.batch").fetchone()
    assert failed == (1,)


def test_the_python_example_commits_its_rows_with_the_record(
    dsn: str, db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The block runs with nothing but a database and the table that it writes."""
    db.execute("create table found (photo text)")
    exec(block("python"), {"DATABASE_URL": dsn})
    assert db.execute("select photo from found order by 1").fetchall() == [
        ("a.png",),
        ("b.png",),
    ]
    assert "SUCCESS" in capsys.readouterr().out
    with pyjobs.Client(dsn) as client:
        (job,) = client.jobs()
        stages = client.job_progress(job.id).stages
    assert (stages[0].failed, stages[0].counters) == (1, {"detections": 2})


def test_what_the_readme_points_to_is_there() -> None:
    """Every relative link names a file or a folder of the repository."""
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_first_command_is_the_demo_and_the_second_the_tests() -> None:
    """Both are targets of the Makefile, and in this order."""
    commands = [line.split("#")[0].strip() for line in block("sh").splitlines()]
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command.split()[1]}:" in makefile for command in commands)
