"""The example workers, in shell, Node and Python: each does its work, and lets go as it should.

Where there is no node and npm there are no cases for it, so that what runs here passes or fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from psycopg import conninfo

from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from tests.support import Cluster, Database

EXAMPLES = Path(__file__).parent.parent / "examples"
HAS_NODE = bool(shutil.which("node") and shutil.which("npm"))
LANGUAGES = ["shell", "python", *(["node"] if HAS_NODE else [])]
HASH = "sha256sum | cut -c1-64"


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its one dependency, as its lock file has it."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "worker.mjs"):
        shutil.copy(EXAMPLES / "node" / name, folder)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def app(db: psycopg.Connection) -> psycopg.Connection:
    """The owner's session, with the examples' table made."""
    db.execute((EXAMPLES / "schema.sql").read_bytes())
    return db


def url_of(dsn: str) -> str:
    """As a URL: the Node client takes nothing else."""
    part = {
        name: quote(str(value), safe="") for name, value in conninfo.conninfo_to_dict(dsn).items()
    }
    login = f"{part['user']}:{part.get('password', '')}"
    if part["host"].startswith("%2F"):
        return f"postgresql://{login}@/{part['dbname']}?host={part['host']}&port={part['port']}"
    return f"postgresql://{login}@{part['host']}:{part['port']}/{part['dbname']}"


class Example:
    """One of the example workers: how to start it."""

    def __init__(self, language: str, environment: dict[str, str], folder: Path) -> None:
        self.language = language
        self._environment = environment
        self._folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self,
        queue: str = "default",
        *,
        until_idle: bool = False,
        item_seconds: float = 0,
        lease: int = 60,
        name: str = "it",
        command: str | None = None,
    ) -> subprocess.Popen[str]:
        """Start it; `command` is for the one in shell."""
        environment = dict(self._environment)
        if self.language == "shell":
            work = command or f"sleep {item_seconds}; {HASH}"
            program = ["sh", str(EXAMPLES / "psql" / "worker.sh"), "-q", queue, "-n", name]
            program += ["-l", str(lease), *(["-i"] if until_idle else []), "sh", "-c", work]
        elif self.language == "node":
            program = ["node", "worker.mjs", "--queues", queue, "--name", name]
            program += ["--lease", str(lease), "--item-delay", str(int(1000 * item_seconds))]
            program += ["--until-idle"] if until_idle else []
        else:
            program = [sys.executable, "-m", "pyjobs", "worker", "worker:answer", "-q", queue]
            program += ["--name", name, "--lease", f"{lease} seconds", "--drain-timeout", "2 s"]
            program += ["--until-idle"] if until_idle else []
            environment["EXAMPLE_ITEM_SECONDS"] = str(item_seconds)
        process = subprocess.Popen(
            program,
            cwd=self._folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that it can be ended with all its children
        )
        self.started.append(process)
        return process

    def work_all(self, queue: str = "default", **options: Any) -> str:
        """Let it work until there is nothing to do; returns what it said."""
        process = self.start(queue, until_idle=True, **options)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return said


@pytest.fixture(params=LANGUAGES)
def example(
    request: pytest.FixtureRequest, app: psycopg.Connection, database: Database, cluster: Cluster
) -> Iterator[Example]:
    """An example worker, connected with the role of a worker and no other."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYJOBS_DATABASE_URL": url_of(database.dsn_of("worker")),
        "PSQL": cluster.psql_path,
    }
    folder = EXAMPLES / "python"
    if request.param == "node":
        folder = request.getfixturevalue("node_folder")
    one = Example(request.param, environment, folder)
    yield one
    for process in one.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ValueError):
            process.communicate(timeout=20)


def enqueue(
    db: psycopg.Connection, items: list[Any], queue: str = "default", **options: Any
) -> int:
    row = db.execute(
        "select pyjobs.enqueue_job(%s, %s::jsonb, batch_size => %s, max_attempts => %s)",
        [queue, json.dumps(items), options.get("batch_size", 2), options.get("max_attempts", 3)],
    ).fetchone()
    assert row is not None
    return int(row[0])


def status(db: psycopg.Connection, job: int) -> str:
    row = db.execute("select status::text from pyjobs.job where id = %s", [job]).fetchone()
    assert row is not None
    return str(row[0])


def batches(db: psycopg.Connection, job: int, columns: str = "state::text") -> list[Any]:
    return db.execute(
        f"select {columns} from pyjobs.batch where job_id = %s order by id", [job]
    ).fetchall()


def until_leased(db: psycopg.Connection, job: int) -> None:
    wait_until(lambda: ("leased",) in batches(db, job), "a batch is leased")


def answers(db: psycopg.Connection, job: int) -> dict[str, str]:
    return dict(
        db.execute("select item, answer from example.answer where job_id = %s", [job]).fetchall()
    )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# What would break out of a careless command line or a careless statement.
HOSTILE = [
    "plain",
    "it's; drop table example.answer; --",
    'double " and \\ and $(reboot) and `reboot` and $$',
    "two\nlines\tand a tab",
    ":batch :'epoch' :\"job\"",
    "%s {0} Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n \N{TELESCOPE}",
    "x" * 200_000,
]


def test_it_works_a_job_to_its_end(example, app):
    job = enqueue(app, ["m31", "m33", "m42", "m45", "m51"])
    example.work_all()
    assert status(app, job) == "SUCCESS"
    assert answers(app, job) == {item: digest(item) for item in ("m31", "m33", "m42", "m45", "m51")}
    (stage,) = app.execute("select pyjobs.job_progress(%s)", [job]).fetchone()[0]["stages"]
    assert (stage["processed"], stage["failed"], stage["counters"]) == (5, 0, {"answers": 5})
    assert app.execute("select * from pyjobs.audit_job()").fetchall() == []


def test_no_value_is_taken_for_code(example, app):
    queue = 'it\'s "the" $queue'
    job = enqueue(app, HOSTILE, queue)
    example.work_all(queue, name="o'Neill; select 1 --")
    assert status(app, job) == "SUCCESS"
    assert answers(app, job) == {item: digest(item) for item in HOSTILE}
    assert {worker for (worker,) in batches(app, job, "worker")} == {"o'Neill; select 1 --"}


def test_a_failed_item_is_a_result(example, app):
    # To the shell a number is a text; there the command fails at it.
    job = enqueue(app, ["a", 7, "c"])
    command = 'read -r item; [ "$item" != 7 ] || { echo not a text >&2; exit 1; }; echo "$item"'
    example.work_all(command=command)
    assert status(app, job) == "SUCCESS"
    assert set(answers(app, job)) == {"a", "c"}
    errors = app.execute("select pyjobs.job_progress(%s)", [job]).fetchone()[0]["errors"]
    assert [(error["item"], error["error"]) for error in errors] == [(7, "not a text")]


def test_what_cannot_be_recorded_is_given_back_with_the_reason(example, app):
    app.execute("alter table example.answer add constraint no_bad check (item <> 'bad')")
    job = enqueue(app, ["bad", "good"], max_attempts=1)
    example.work_all()
    assert status(app, job) == "FAILURE"
    assert answers(app, job) == {}
    ((state, error),) = batches(app, job, "state::text, error")
    assert state == "failed"
    assert "no_bad" in error


def test_a_late_result_is_refused_with_its_rows_and_reported(
    example, app, connect: Callable[..., psycopg.Connection], admin
):
    job = enqueue(app, ["a", "b"])
    gate = connect(autocommit=False)
    gate.execute("lock table example.answer in share mode")
    process = example.start(until_idle=True)
    wait_until(
        lambda: admin.execute(
            "select from pg_locks where relation = 'example.answer'::regclass and not granted"
            " and database = (select oid from pg_database where datname = current_database())"
        ).fetchall(),
        "the worker writes its rows",
    )
    # Somebody else ends its lease meanwhile, and works the batch.
    app.execute(
        "select pyjobs.release_batch(id, lease_epoch) from pyjobs.batch where job_id = %s", [job]
    )
    app.execute("select * from pyjobs.claim_next_batch(%s, 'other', lease => '1 hour')", [job])
    gate.rollback()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert answers(app, job) == {}
    assert batches(app, job, "state::text, worker") == [("leased", "other")]
    refused = app.execute("select job_id, sqlstate, class from pyjobs.refused").fetchall()
    assert refused == [(job, "PJ001", "suspicious")]


def test_on_sigterm_it_gives_its_batch_back(example, app):
    job = enqueue(app, [f"m{n}" for n in range(300)], batch_size=300)
    process = example.start(item_seconds=0.2)
    until_leased(app, job)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert batches(app, job, "state::text, error") == [("pending", None)]
    assert answers(app, job) == {}
    # It cost no attempt: the next claim is the first again.
    claimed = app.execute("select attempt from pyjobs.claim_next_batch(%s, 'x')", [job]).fetchall()
    assert claimed == [(1,)]


def test_it_keeps_its_lease_while_it_works(example, app):
    job = enqueue(app, [f"m{n}" for n in range(300)], batch_size=300)
    example.start(item_seconds=0.2, lease=3)
    until_leased(app, job)
    ((first, epoch),) = batches(app, job, "lease_expires_at, lease_epoch")
    wait_until(
        lambda: batches(app, job, "lease_expires_at")[0][0] > first,
        "the lease is extended",
    )
    assert batches(app, job, "state::text, lease_epoch") == [("leased", epoch)]


def test_its_lease_is_not_kept_when_it_is_killed(example, app):
    job = enqueue(app, [f"m{n}" for n in range(300)], batch_size=300)
    process = example.start(item_seconds=0.2, lease=3)
    until_leased(app, job)
    process.kill()
    wait_until(lambda: app.execute("select * from pyjobs.reap_leases()").fetchall(), "it expires")
    assert batches(app, job, "state::text, worker") == [("pending", "it")]


def test_it_stops_when_its_job_is_cancelled(example, app):
    job = enqueue(app, [f"m{n}" for n in range(300)], batch_size=300)
    process = example.start(item_seconds=0.2, lease=3)
    until_leased(app, job)
    app.execute("select pyjobs.cancel_job(%s, grace => '10 minutes')", [job])
    wait_until(lambda: status(app, job) == "REVOKED", "the worker let go of the cancelled job")
    assert answers(app, job) == {}
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said


def test_it_waits_for_work_and_takes_it_when_it_comes(example, app):
    process = example.start()
    wait_until(
        lambda: app.execute("select from pyjobs.active_workers() where worker = 'it'").fetchall(),
        "the worker has asked for work",
    )
    job = enqueue(app, ["late"])
    wait_until(lambda: status(app, job) == "SUCCESS", "the job that came later is done")
    assert process.poll() is None


def test_the_shell_worker_gives_back_what_cannot_be_done_now(app, database, cluster):
    """Exit status 75: the batch waits, with the reason, and its attempt is used up."""
    job = enqueue(app, ["a"])
    done = subprocess.run(
        ["sh", str(EXAMPLES / "psql" / "worker.sh"), "-i", "sh", "-c", "echo no disk >&2; exit 75"],
        env={
            "PATH": os.environ["PATH"],
            "PSQL": cluster.psql_path,
            "PYJOBS_DATABASE_URL": database.dsn_of("worker"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ((state, error, waits),) = batches(app, job, "state::text, error, due_at > now()")
    assert (state, error, waits) == ("pending", "no disk", True)


@pytest.mark.parametrize(
    ("arguments", "url", "code"),
    [([], "postgresql://127.0.0.1:1/none", 2), (["-i", "cat"], "postgresql://127.0.0.1:1/none", 1)],
)
def test_the_shell_worker_says_what_it_lacks(arguments, url, code, cluster):
    done = subprocess.run(
        ["sh", str(EXAMPLES / "psql" / "worker.sh"), *arguments],
        env={"PATH": os.environ["PATH"], "PSQL": cluster.psql_path, "PYJOBS_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code
    assert ("usage: " if code == 2 else "could not claim: connection to server") in done.stderr
