"""docs/tour.sql runs as it stands, shows what it says, and fits into 100 columns."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psycopg

    from tests.support import Cluster, Database

TOUR = Path(__file__).parent.parent / "docs" / "tour.sql"


@pytest.fixture
def tour(database: Database, cluster: Cluster) -> subprocess.CompletedProcess[str]:
    """What psql says when it runs the tour as the owner, who is no superuser."""
    return subprocess.run(
        [cluster.psql_path, "-X", "-v", "ON_ERROR_STOP=1", "-f", str(TOUR), database.dsn],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_tour_runs_to_its_end(tour, db):
    assert tour.returncode == 0, tour.stderr
    jobs = db.execute("select name, status::text, run from pyjobs.job order by id").fetchall()
    assert jobs == [("five pictures", "SUCCESS", 2), ("three more", "REVOKED", 1)]
    assert db.execute("select * from pyjobs.audit_job()").fetchall() == []


def test_its_only_error_is_the_late_result_that_it_is_about(tour):
    assert re.findall(r"ERROR: .*", tour.stderr) == [
        "ERROR:  the lease on batch 2 with epoch 1 is stale"
    ]
    assert "WARNING" not in tour.stderr


def test_every_step_is_said_before_it_is_shown(tour):
    said = re.findall(r"^\\echo '(\d+)\. (.+)'$", TOUR.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in said] == list(range(1, len(said) + 1))
    for number, text in said:
        assert f"\n{number}. {text}\n" in f"\n{tour.stdout}"
    shown = tour.stdout
    for wanted in ("ready", "leased", "cancelling", "FAILURE", "RETRY", "CANCELING", "carried"):
        assert re.search(rf"\b{wanted}\b", shown), f"the tour does not show {wanted}"


def test_what_it_shows_fits_into_100_columns(tour):
    wide = [line for line in tour.stdout.splitlines() if len(line) > 100]
    assert wide == []


def test_it_can_be_run_again(tour, database: Database, cluster: Cluster, db: psycopg.Connection):
    again = subprocess.run(
        [cluster.psql_path, "-X", "-v", "ON_ERROR_STOP=1", "-f", str(TOUR), database.dsn],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert again.returncode == 0, again.stderr
    assert db.execute("select count(*) from pyjobs.job").fetchone() == (4,)
