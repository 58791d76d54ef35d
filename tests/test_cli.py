"""The command line: each verb's text, JSON and exit status, and what it says when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from psycopg import sql
from typer.testing import CliRunner

import pyjobs
from pyjobs import migrate
from pyjobs.cli import _output, app
from pyjobs.cli._app import EXIT_STATUSES, Status
from tests.support import wait_until
from tests.support.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from tests.support import Database

ROOT = Path(__file__).parent.parent
GROUP: Any = typer.main.get_command(app)
VERBS: dict[str, Any] = dict(GROUP.commands)
NO_URL = {"PYJOBS_DATABASE_URL": ""}


@dataclass
class Answer:
    """What the program said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code in {0, 1}, self.err
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error object that --json gives."""
        assert self.out == ""
        return json.loads(self.err)["error"]


Cli = Any


@pytest.fixture
def cli(database: Database) -> Callable[..., Answer]:
    """``cli("status", 1)``: run it in this process, by default as the owner."""

    def run(*arguments: Any, role: str | None = None, stdin: str | None = None) -> Answer:
        dsn = database.dsn if role is None else database.dsn_of(role)
        return invoke(*arguments, stdin=stdin, PYJOBS_DATABASE_URL=dsn)

    return run


def invoke(*arguments: Any, stdin: str | None = None, **environment: str) -> Answer:
    result = CliRunner().invoke(app, [str(one) for one in arguments], stdin, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def calls(db: psycopg.Connection) -> Calls:
    """The SQL functions, as the owner."""
    return Calls(db)


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start it in a process of its own, in an empty folder."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        environment = os.environ | {"PYJOBS_DATABASE_URL": database.dsn, "COLUMNS": "100"}
        process = subprocess.Popen(
            [sys.executable, "-m", "pyjobs", *map(str, arguments)],
            **{
                "cwd": tmp_path,
                "env": environment,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **options,
            },
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(ValueError):
            process.communicate(timeout=20)


# -- what every verb has


def test_the_verbs_of_the_interface_are_there():
    contract = "migrate demo worker enqueue status watch cancel retry reap explain audit purge"
    assert set(contract.split()) <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb):
    command = VERBS[verb]
    assert command.help
    options = {name for param in command.params for name in param.opts}
    assert "--json" in options
    assert "--database-url" in options or verb == "sql"
    for param in command.params:
        assert param.param_type_name == "argument" or param.help, f"{verb} {param.name}: no help"
    answer = invoke(verb, "--help")
    assert answer.code == 0
    assert "pyjobs " + verb in answer.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_in_the_help_is_one_that_it_takes(verb):
    _, *lines = VERBS[verb].epilog.split("\n\n")
    examples = [line for line in lines if line.replace("\\[", "[")]
    assert examples
    for line in examples:
        words = shlex.split(line.replace("\\[", "["), comments=True)
        words = words[words.index("pyjobs") + 1 :]
        for end in ("|", "||", "&&"):
            words = words[: words.index(end)] if end in words else words
        assert words[0] == verb
        with VERBS[verb].make_context(verb, words[1:]):
            pass


def test_the_help_tells_every_exit_status():
    shown = invoke("--help").out
    written = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for status, meaning in EXIT_STATUSES.items():
        assert re.search(rf"^ *{status.value}  {re.escape(meaning[:40])}", shown, re.MULTILINE)
        assert f"| {status.value} | {meaning} |" in written
    assert set(EXIT_STATUSES) == set(Status)


def test_the_document_lists_every_verb():
    written = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w-]+)[^|`]*` \| (.+) \|$", written, re.MULTILINE)
    assert told == [(verb, command.help.split("\n")[0]) for verb, command in VERBS.items()]


def test_the_defaults_in_the_help_are_those_of_the_database(calls):
    """An option that is not given is not sent: what the help says of it is SQL's."""

    def default(function: str, argument: str) -> str:
        stated = calls.value("select pg_get_function_arguments(%s::regproc)", f"pyjobs.{function}")
        found = re.search(
            rf"\b{argument} [^,]+? DEFAULT ('(\S[^']*)'::[\w.]+(?: [\w ]+)?|[^,]+)", stated
        )
        assert found, f"{argument} in {stated}"
        return found[1]

    def told(verb: str, option: str) -> str:
        (text,) = (param.help for param in VERBS[verb].params if option in param.opts)
        return re.search(r"\(([^()]+)\)", text)[1]

    for option in ("batch_size", "priority", "failure_threshold", "max_attempts"):
        assert default("enqueue_job", option) == told("enqueue", f"--{option.replace('_', '-')}")
    assert told("enqueue", "--stage") in default("enqueue_job", "stages")
    grace = default("cancel_job", "grace")
    lease = default("claim_next_job", "lease")
    assert calls.value(f"select {grace} = %s::interval", told("cancel", "--grace"))
    assert calls.value(f"select {lease} = %s::interval", told("worker", "--lease"))
    assert told("worker", "--queue") in default("claim_next_job", "queues")


def test_it_tells_its_version():
    answer = invoke("--version")
    assert (answer.code, answer.out) == (0, f"pyjobs {pyjobs.__version__}\n")


def test_without_a_verb_it_shows_its_help_and_does_nothing():
    answer = invoke()
    assert answer.code == Status.USAGE
    assert "Usage:" in answer.out


# -- what goes wrong


def test_no_database_named_is_wrong_usage():
    answer = invoke("status", **NO_URL)
    assert answer.code == Status.USAGE
    assert "no database named" in answer.err
    assert "HINT: Give --database-url, or set PYJOBS_DATABASE_URL." in answer.err


def test_a_server_that_is_not_there_is_said_without_a_traceback():
    answer = invoke("status", "-d", "postgresql://127.0.0.1:1/none", **NO_URL)
    assert answer.code == Status.NO_DATABASE
    assert answer.err.startswith("error: connection failed")
    assert "Traceback" not in answer.err


def test_a_connection_string_that_is_none_is_wrong_usage():
    answer = invoke("status", "--database-url", "what is this", **NO_URL)
    assert answer.code == Status.USAGE
    assert "connection info string" in answer.err


@pytest.mark.parametrize("place", ["before", "behind"])
def test_an_option_goes_before_the_environment(place, cli):
    other = ["-d", "postgresql://127.0.0.1:1/none"]
    answer = cli(*other, "status") if place == "before" else cli("status", *other)
    assert answer.code == Status.NO_DATABASE


def test_a_database_without_pyjobs_is_said(admin):
    admin.execute("drop schema pyjobs cascade")
    dsn = admin.info.dsn
    answer = invoke("queues", PYJOBS_DATABASE_URL=f"{dsn} password={admin.info.password}")
    assert answer.code == Status.NO_DATABASE
    assert "HINT: Is it migrated? Run: pyjobs migrate" in answer.err


def test_a_role_that_may_not_is_told_so(cli, calls):
    job = calls.enqueue()
    answer = cli("cancel", job, role="producer")
    assert answer.code == Status.NOT_ALLOWED
    assert "permission denied" in answer.err
    assert calls.status(job) == "PENDING"


def test_an_unknown_job_is_not_found(cli):
    for verb in (
        ["status"],
        ["wait"],
        ["watch"],
        ["explain"],
        ["history"],
        ["cancel"],
        ["retry"],
        ["seal"],
        ["release"],
        ["pause"],
        ["resume"],
        ["finalize"],
    ):
        answer = cli(*verb, 4711)
        assert answer.code == Status.NOT_FOUND, verb
        assert "4711" in answer.err
        assert "HINT: " in answer.err


def test_an_error_has_message_detail_and_hint(cli, calls):
    job = calls.enqueue()
    text = cli("resolve", job, "RETRY", "--reason", "why not")
    assert text.code == Status.REFUSED
    message, detail, hint = text.err.splitlines()
    assert message.startswith("error: ")
    assert detail.startswith("DETAIL: ")
    assert hint.startswith("HINT: ")
    error = cli("resolve", job, "RETRY", "--reason", "why not", "--json").error
    assert error == {
        "sqlstate": "PJ003",
        "message": message.removeprefix("error: "),
        "detail": detail.removeprefix("DETAIL: "),
        "hint": hint.removeprefix("HINT: "),
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["enqueue", ""],
        ["enqueue", "q", "--items", "{}"],
        ["enqueue", "q", "--items", "[1,"],
        ["enqueue", "q", "--items", "[NaN]"],
        ["enqueue", "q", "--items", "@no/such/file"],
        ["enqueue", "q", "--items", "[1]", "--lines", "-"],
        ["enqueue", "q", "--batch-size", "0"],
        ["enqueue", "q", "--failure-threshold", "2"],
        ["enqueue", "q", "--run-at", "some day"],
        ["enqueue", "q", "--priority", "99999999999"],
        ["enqueue-many", "q", "{}"],
        ["add", "1"],
        ["status", "x"],
        ["status", "1", "--queue", "q"],
        ["status", "--live", "--status", "SUCCESS"],
        ["status", "--status", "DONE"],
        ["status", "99999999999999999999999"],
        ["watch", "1", "--queue", "q"],
        ["cancel", "1", "--grace", "3 bananas"],
        ["cancel", "1", "--grace", "-1 second"],
        ["finalize", "1", "--status", "PENDING"],
        ["resolve", "1", "SUCCESS", "--reason", "x"],
        ["quarantine", "1"],
        ["priority", "1", "high"],
        ["reap", "--stale-after", "soon"],
        ["purge"],
        ["purge", "--older-than", "-1 day"],
        ["rollback"],
        ["pause-queue", ""],
        ["worker", "nothing"],
        ["no-such-verb"],
    ],
    ids=" ".join,
)
def test_bad_input_exits_2_and_changes_nothing(arguments, cli, calls):
    job = calls.enqueue()
    answer = cli(*[job if one == "1" and n == 1 else one for n, one in enumerate(arguments)])
    assert answer.code == Status.USAGE, answer
    assert "Traceback" not in answer.err
    assert answer.err
    assert calls.value("select array_agg(status::text) from pyjobs.job") == ["PENDING"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that we start heeds the keyboard, though we run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_keyboard_interrupts_it_quietly(interruptible, start, calls):
    process = start("wait", calls.enqueue())
    wait_until(
        lambda: calls.rows(
            "select from pg_stat_activity where datname = current_database()"
            " and application_name = 'pyjobs' and query ~ 'job_progress'"
        ),
        "it has looked at the job",
    )
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (Status.INTERRUPTED, "", "")


def test_a_reader_that_goes_away_is_no_trouble(start):
    # A buffered one notices; what an unbuffered one could not write is lost without a word.
    process = start("sql", text=False, env=os.environ | {"PYTHONUNBUFFERED": ""})
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=20) == Status.REFUSED
    assert process.stderr.read() == b""


def test_what_stands_in_the_database_cannot_steer_a_terminal(cli, calls):
    calls.enqueue(name="\x1b[2Jgone\x07")
    answer = cli("status")
    assert "gone" in answer.out
    assert "\x1b" not in answer.out
    assert "\x07" not in answer.out


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["people", "json"])
def test_no_verb_prints_what_could_steer_a_terminal(form, cli, calls):
    """Names, reasons, errors, items, counters and refusals of somebody who would like to."""
    evil = "'; --\r\t\x1b[2J\x1b]0;x\x07\x9b31m\x7f\u202e%s[red]"
    job = calls.enqueue(
        evil, [{evil: evil}, 1], params={evil: evil}, name=evil, stages=[evil], max_attempts=1
    )
    first, second = calls.claim(job, 2, worker=evil)
    calls.record(first, failed=[0], counters={evil: 1})
    calls.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001', %s)",
        first["batch_id"],
        first["lease_epoch"],
        evil,
    )
    calls.do(
        "select pyjobs.release_batch(%s, %s, %s)", second["batch_id"], second["lease_epoch"], evil
    )
    other = calls.enqueue(evil, [1], name=evil)
    calls.ask(evil, evil)
    calls.do("select pyjobs.quarantine_job(%s, %s)", other, evil)
    for verb in (
        ["status"],
        ["status", job],
        ["status", other],
        ["explain", job],
        ["explain", other],
        ["history", job],
        ["history", other],
        ["queues"],
        ["workers"],
        ["refused"],
        ["watch", job],
        ["wait", job],
        ["pause-queue", evil],
        ["explain", calls.enqueue(evil)],
        ["enqueue", evil * 20],
        ["add", job, "--items", "[1]", "--stage", evil],
        [evil],
    ):
        answer = cli(*verb, *form)
        for shown in (answer.out, answer.err):
            odd = {one for one in shown if not one.isprintable() and one not in "\n\xa0"}
            assert not odd, (verb, shown)


# -- producers


def test_enqueue_prints_the_id_of_a_job_with_what_was_given(cli, calls):
    answer = cli(
        *("enqueue", "imaging", "--items", '["a", {"b": 1.50}]', "--params", '{"p": null}'),
        *("--batch-size", 2, "--priority", -5, "--name", "a name", "--max-attempts", 7),
        *("--failure-threshold", "0.25", "--stage", "collect", "--stage", "process"),
        *("--barrier", "process", "--dedupe-key", "k", "--run-at", "2099-01-31 09:00+00"),
    )
    assert answer.code == 0, answer.err
    job = calls.row("select * from pyjobs.job")
    assert answer.out == f"{job['id']}\n"
    assert job["queue"] == "imaging"
    assert (job["priority"], job["name"], job["max_attempts"]) == (-5, "a name", 7)
    assert (str(job["failure_threshold"]), job["stages"]) == ("0.25", ["collect", "process"])
    assert (job["dedupe_key"], job["run_at"].year, job["params"]) == ("k", 2099, {"p": None})
    assert calls.value("select items::text from pyjobs.batch") == '["a", {"b": 1.50}]'
    same = cli("enqueue", "imaging", "--dedupe-key", "k", "--json")
    assert same.json == {"job_id": job["id"]}


def test_enqueue_takes_lines_and_files(cli, calls, tmp_path):
    stdin = "a b\n\nit's\r\n\N{LINE SEPARATOR}x\n"
    job = cli("enqueue", "q", "--lines", "-", "--batch-size", 9, stdin=stdin).json
    items = "select items from pyjobs.batch where job_id = %s"
    assert calls.value(items, job) == ["a b", "it's", "\N{LINE SEPARATOR}x"]
    (tmp_path / "items.json").write_text("[1, 2]", encoding="utf-8")
    job = cli("enqueue", "q", "--items", f"@{tmp_path / 'items.json'}", "--batch-size", 9).json
    assert calls.value(items, job) == [1, 2]
    job = cli("enqueue", "q", "--items", "-", "--batch-size", 9, stdin="[3]").json
    assert calls.value(items, job) == [3]


def test_enqueue_waits_for_the_end(cli, calls):
    assert cli("enqueue", "q", "--items", "[]", "--wait").out == "job 1 is SUCCESS\n"
    answer = cli("enqueue", "q", "--wait", "--timeout", 0)
    assert answer.code == Status.TIME_OUT
    assert "job 2 is PENDING" in answer.err
    # It is there all the same.
    assert calls.status(2) == "PENDING"


def test_enqueue_many_makes_a_job_of_each(cli, calls):
    assert cli("enqueue-many", "q", '[{"n": 1}, {"n": 2}]', "--name", "mail").out == "1\n2\n"
    assert cli("enqueue-many", "q", '[{"n": 3}]', "--json").json == {"job_ids": [3]}
    assert calls.value("select array_agg(params ->> 'n' order by id) from pyjobs.job") == list(
        "123"
    )


def test_a_held_and_unsealed_job_is_filled_sealed_and_released(cli, calls):
    job = cli("enqueue", "q", "--items", "[1]", "--hold", "--no-seal", "--json").json["job_id"]
    assert cli("status", "--json").json[0]["sealed"] is False
    assert cli("add", job, "--items", "[2, 3]").out == f"job {job} is CREATED\n"
    assert cli("add", job, "--lines", "-", stdin="4\n", role="producer").code == 0
    assert cli("release", job, "--json").json == {"job_id": job, "status": "PENDING"}
    assert "not sealed" in cli("status").out
    assert cli("seal", job).out == f"job {job} is PENDING\n"
    answer = cli("add", job, "--items", "[5]")
    assert answer.code == Status.REFUSED
    assert "sealed" in answer.err
    assert calls.value("select count(*) from pyjobs.batch") == 4


# -- readers


def test_status_lists_jobs_the_newest_first(cli, calls):
    assert cli("status").out == "no jobs\n"
    first, second = calls.enqueue("a", name="first"), calls.enqueue("b", 2, name="second")
    calls.do("select pyjobs.cancel_job(%s, 'not wanted')", first)
    header, *lines = cli("status").out.splitlines()
    assert header.split()[:4] == ["job", "queue", "name", "status"]
    assert lines[0].split()[:4] == [str(second), "b", "second", "PENDING"]
    assert lines[1].split()[:4] == [str(first), "a", "first", "REVOKED"]
    assert lines[1].endswith("not wanted")
    for options, wanted in (
        (["--queue", "a"], [first]),
        (["--status", "pending", "--status", "REVOKED"], [second, first]),
        (["--status", "SUCCESS"], []),
        (["--live"], [second]),
        (["--name", "first"], [first]),
        (["--limit", 1], [second]),
        (["--before", second], [first]),
    ):
        assert [job["id"] for job in cli("status", *options, "--json").json] == wanted, options


def test_status_says_what_keeps_a_job_back(cli, calls):
    calls.enqueue("stopped")
    calls.do("select pyjobs.pause_queue('stopped')")
    calls.do("select pyjobs.pause_job(%s)", calls.enqueue("q"))
    calls.enqueue("q", run_at="2099-01-01")
    later, paused, stopped = cli("status").out.splitlines()[1:]
    assert " from 20" in later
    assert paused.endswith("paused")
    assert stopped.endswith("queue paused")


def test_status_shows_a_jobs_progress_to_a_producer_too(cli, calls):
    job = calls.enqueue(items=4, batch_size=2, failure_threshold=1.0)
    (batch,) = calls.claim(job)
    calls.record(batch, failed=[1], counters={"stars": 7})
    shown = cli("status", job, role="producer").out
    assert shown.startswith(f"job {job} is STARTED, 50.0%")
    assert re.search(r"^process +running +50.0% +2/4 +1 +0 +2 +stars 7$", shown, re.MULTILINE)
    assert re.search(r"^process +1 +error 1$", shown, re.MULTILINE)
    document = cli("status", job, "--json").json
    assert document.pop("job_id") == job
    assert document["stages"] == calls.progress(job)["stages"]


def test_status_says_how_many_more_failed(cli, calls):
    job = calls.enqueue(items=12, batch_size=12)
    calls.finish(job, failed=range(12))
    assert "and 2 more failed items\n" in cli("status", job).out


def test_wait_exits_0_only_for_success(cli, calls):
    job = calls.enqueue(items=[])
    assert (cli("wait", job).code, cli("wait", job).out) == (0, f"job {job} is SUCCESS\n")
    job = calls.enqueue(items=1)
    calls.finish(job, failed=[0])
    answer = cli("wait", job)
    assert answer.code == Status.REFUSED
    assert answer.out == f"job {job} is FAILURE, 1 failed items; see: pyjobs status {job}\n"
    assert cli("wait", job, "--json").json["summary"]["status"] == "FAILURE"


def test_explain_says_why_and_what_to_do(cli, calls):
    job = calls.enqueue(hold=True)
    shown = cli("explain", job).out
    assert shown.splitlines()[0].split() == ["finding", "evidence", "remedy"]
    assert "held" in shown
    found = cli("explain", job, "--json").json
    assert found == calls.explain(job)


def test_audit_exits_1_where_a_number_differs(cli, calls, admin):
    job = calls.enqueue(items=3)
    calls.finish(job)
    for arguments in ((), (job,)):
        assert cli("audit", *arguments).out == "all numbers agree with the ledger\n"
        assert cli("audit", *arguments, "--json").json == []
    admin.execute("update pyjobs_internal.stage set total = total + 1")
    answer = cli("audit", job)
    assert answer.code == Status.REFUSED
    assert "total" in answer.out
    assert cli("audit", "--json").json == calls.audit()


def test_history_says_who_and_why(cli, calls):
    job = calls.enqueue()
    calls.do("select pyjobs.cancel_job(%s, 'not wanted')", job)
    made, cancelled = cli("history", job).out.splitlines()[1:]
    assert "PENDING" in made
    assert cancelled.endswith("not wanted")
    assert [one["to_status"] for one in cli("history", job, "--json").json] == [
        "PENDING",
        "REVOKED",
    ]


def test_queues_and_workers_are_listed(cli, calls):
    assert cli("workers").out == "no active workers\n"
    calls.enqueue("imaging", 3)
    calls.ask("ada", "imaging")
    (line,) = cli("queues").out.splitlines()[1:]
    assert line.split()[:6] == ["imaging", "no", "0", "1", "2", "1"]
    assert cli("queues", "--json").json[0]["pending_batches"] == 2
    (line,) = cli("workers").out.splitlines()[1:]
    assert line.split()[:2] == ["ada", "imaging"]
    assert line.split()[-1] == "1"
    assert cli("workers", "--json").json[0]["queues"] == ["imaging"]


def test_refused_results_are_listed(cli, calls):
    assert cli("refused").out == "no refused results\n"
    job = calls.enqueue()
    (batch,) = calls.claim(job)
    calls.do("select pyjobs.release_batch(%s, %s)", batch["batch_id"], batch["lease_epoch"])
    calls.do(
        "select pyjobs.report_refused(%s, %s, 'PJ001', 'late')",
        batch["batch_id"],
        batch["lease_epoch"],
    )
    (line,) = cli("refused", job).out.splitlines()[1:]
    assert "PJ001" in line
    (refused,) = cli("refused", "--json").json
    assert (refused["job_id"], refused["detail"]) == (job, "late")
    shown = cli("refused", "--suspicious", "--json").json
    assert shown == ([refused] if refused["class"] == "suspicious" else [])


# -- watch


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def test_watch_tells_a_pipe_each_change_until_the_end(start, calls):
    job = calls.enqueue(items=4, name="four")
    process = start("watch", "--every", 0.05)
    lines = lines_of(process)
    first = next(lines)
    assert f" job {job} four: PENDING 0.0%, 0/4 items" in first
    (batch,) = calls.claim(job)
    assert "STARTED 0.0%, 0/4 items" in next(lines)
    calls.record(batch, failed=[0])
    assert "STARTED 25.0%, 1/4 items, 1 failed, " in next(lines)
    calls.finish(job)
    *_, last = lines
    assert last.endswith(f" job {job} four: SUCCESS 100.0%, 4/4 items, 1 failed\n")
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == ""


def test_watch_gives_a_program_a_document_a_line(start, calls):
    job = calls.enqueue(items=2)
    process = start("watch", job, "--every", 0.05, "--json")
    lines = lines_of(process)
    assert json.loads(next(lines))["summary"]["status"] == "PENDING"
    calls.do("select pyjobs.cancel_job(%s)", job)
    document = json.loads(next(lines))
    assert document.pop("job_id") == job
    assert document == calls.progress(job)
    assert process.wait(timeout=20) == Status.REFUSED


def test_watch_sees_jobs_that_come_later(start, calls):
    first = calls.enqueue()
    process = start("watch", "--queue", "default", "--every", 0.05)
    lines = lines_of(process)
    assert f"job {first}: PENDING" in next(lines)
    calls.enqueue("another")
    second = calls.enqueue()
    assert f"job {second}: PENDING" in next(lines)
    calls.finish(first)
    calls.finish(second)
    assert {line.split()[2] for line in lines} == {f"{first}:", f"{second}:"}
    assert process.wait(timeout=20) == 0


def test_watch_ends_where_there_is_nothing_to_see(cli, calls):
    assert (cli("watch").code, cli("watch").out) == (0, "no live jobs\n")
    # A held job ends only after somebody releases it.
    job = calls.enqueue(hold=True)
    assert cli("watch").out == "no live jobs\n"
    answer = cli("watch", job, "--timeout", 0)
    assert answer.code == Status.TIME_OUT
    assert "CREATED" in answer.out


def test_watch_draws_bars_on_a_terminal(start, calls):
    import pty

    job = calls.enqueue(items=4, name="four")
    (batch,) = calls.claim(job)
    calls.record(batch)
    leader, follower = pty.openpty()
    process = start("watch", job, "--every", 0.05, stdout=follower, stderr=follower, text=False)
    os.close(follower)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        with contextlib.suppress(OSError):  # on Linux the end of a terminal is an error
            seen += os.read(leader, 65536)
        return seen

    # A screen may come in several pieces.
    shown = [b"25.0%", "\N{BOX DRAWINGS HEAVY HORIZONTAL}".encode(), b"process", b"1/4"]
    wait_until(
        lambda: all(what in seen for what in shown) or not read(), "both bars are at a quarter"
    )
    assert [what for what in shown if what not in seen] == []
    calls.finish(job)
    wait_until(lambda: b"SUCCESS" in read(), "the end is shown")
    assert process.wait(timeout=20) == 0
    os.close(leader)


# -- operators


def test_cancel_stops_a_job(cli, calls):
    job = calls.enqueue(items=2)
    (batch,) = calls.claim(job)
    answer = cli("cancel", job, "--reason", "not wanted", "--grace", "2 minutes", "--json")
    assert answer.json == {"job_id": job, "status": "CANCELING"}
    left = calls.value("select cancel_deadline - now() from pyjobs.job")
    assert 110 < left.total_seconds() <= 120
    assert cli("cancel", job, "--wait", "--timeout", 0).code == Status.TIME_OUT
    calls.record(batch)
    assert cli("cancel", job, "--wait").out == f"job {job} is REVOKED\n"


def test_cancel_exits_1_where_the_job_had_ended_otherwise(cli, calls):
    job = calls.enqueue(items=[])
    answer = cli("cancel", job)
    assert answer.code == Status.REFUSED
    assert answer.out == f"job {job} is SUCCESS: it ended before it was cancelled\n"


def test_retry_starts_the_next_run(cli, calls):
    job = calls.enqueue(items=4)
    answer = cli("retry", job)
    assert answer.code == Status.REFUSED, "it has not ended"
    for number, batch in enumerate(calls.claim(job, 4)):
        calls.record(batch, failed=[0] if number < 3 else [])
    assert cli("retry", job, "--failed-only").out == f"job {job} is RETRY\n"
    assert calls.progress(job)["stages"][0]["total"] == 3
    calls.finish(job)
    assert cli("retry", job, "--failed-only").code == Status.REFUSED, "nothing failed"
    assert cli("retry", job, "--json").json["status"] == "RETRY"
    assert calls.progress(job)["stages"][0]["total"] == 4


def test_retry_waits_for_the_end(cli, calls):
    job = calls.enqueue(items=1)
    calls.finish(job, failed=[0])
    answer = cli("retry", job, "--wait", "--timeout", 0)
    assert answer.code == Status.TIME_OUT
    assert calls.row("select run, status::text from pyjobs.job") == {"run": 2, "status": "RETRY"}


def test_finalize_exits_0_only_where_it_ended_the_job(cli, calls):
    job = calls.enqueue()
    answer = cli("finalize", job)
    assert (answer.code, answer.out) == (
        Status.REFUSED,
        f"job {job} is PENDING: it is not complete\n",
    )
    answer = cli("finalize", job, "--status", "failure", "--reason", "by hand", "--json")
    assert answer.json == {"job_id": job, "transitioned": True, "status": "FAILURE"}
    assert answer.code == 0
    answer = cli("finalize", job, "--status", "SUCCESS")
    assert (answer.code, answer.out) == (Status.REFUSED, f"job {job} is FAILURE, and was before\n")


def test_quarantine_and_resolve(cli, calls):
    job = calls.enqueue()
    assert cli("quarantine", job, "--reason", "odd").out == f"job {job} is UNKNOWN\n"
    assert cli("resolve", job, "retry", "--reason", "fine").out == f"job {job} is RETRY\n"
    cli("quarantine", job, "--reason", "odd again")
    answer = cli("resolve", job, "FAILURE", "--reason", "bad", "--json")
    assert answer.json == {"job_id": job, "status": "FAILURE"}
    assert [one["reason"] for one in calls.history(job)][1:] == ["odd", "fine", "odd again", "bad"]


def test_pause_and_resume_a_job(cli, calls):
    job = calls.enqueue()
    assert cli("pause", job).out == f"job {job} is PENDING\n"
    assert calls.claim(job) == []
    assert cli("resume", job, "--json").json == {"job_id": job, "status": "PENDING"}
    assert len(calls.claim(job)) == 1


def test_pause_and_resume_a_queue(cli, calls):
    job = calls.enqueue("q")
    assert cli("pause-queue", "q").out == "queue q is paused\n"
    assert calls.claim(job) == []
    assert cli("resume-queue", "q", "--json").json == {"queue": "q", "paused": False}
    assert len(calls.claim(job)) == 1


@pytest.mark.parametrize("number", [10, 0, -5])
def test_priority_takes_any_number(number, cli, calls):
    job = calls.enqueue()
    assert cli("priority", job, number).code == 0
    assert calls.value("select priority from pyjobs.job") == number


def test_reap_takes_back_what_expired(cli, calls):
    assert cli("reap").out == "nothing to reap\n"
    assert cli("reap", "--json").json == []
    calls.settable_clock()
    job = calls.enqueue(items=1)
    (batch,) = calls.claim(job)
    calls.pass_time("2 minutes")
    (line,) = cli("reap", "--dry-run", "--stale-after", "10 minutes").out.splitlines()[1:]
    assert str(batch["batch_id"]) in line
    assert calls.value("select state::text from pyjobs.batch") == "leased"
    (reaped,) = cli("reap", "--json").json
    assert (reaped["job_id"], reaped["batch_id"]) == (job, batch["batch_id"])
    assert calls.value("select state::text from pyjobs.batch") == "pending"


def test_purge_deletes_what_ended_long_ago(cli, calls):
    calls.settable_clock()
    calls.enqueue(items=[])
    live = calls.enqueue()
    assert cli("purge", "--older-than", "90 days").out == "0 jobs deleted\n"
    calls.pass_time("91 days")
    assert cli("purge", "--older-than", "90 days", "--json").json == {"purged": 1}
    assert calls.value("select array_agg(id) from pyjobs.job") == [live]


SIZES = """
select relation::regclass::text, pg_relation_size(relation)
from (select indexrelid from pg_index where indrelid = 'pyjobs_internal.batch'::regclass
    union all select 'pyjobs_internal.batch'::regclass) r (relation)"""


def test_purge_gives_back_the_room_on_the_disk(cli, calls):
    job = calls.enqueue(items=2_000)
    calls.finish(job)
    full = dict(calls.conn.execute(SIZES).fetchall())
    # In parts: the deletion alone gives nothing back, and what it left can be given back later.
    assert cli("purge", "--older-than", "0").out == "1 jobs deleted\n"
    calls.enqueue(items=[])
    answer = cli("purge", "--older-than", "0", "--give-back", "--json").json
    assert answer["purged"] == 1
    left = dict(calls.conn.execute(SIZES).fetchall())
    assert left.keys() == full.keys()
    assert left.pop("pyjobs_internal.batch") == 0
    assert max(left.values()) <= 8192
    assert answer["given_back"] > 0.9 * sum(full.values())
    assert cli("purge", "--give-back").out == "0 jobs deleted, 0.0 MB given back\n"


def test_only_the_owner_gives_back_room_and_a_purge_with_it_is_refused_before_it_begins(cli, calls):
    calls.enqueue(items=[])
    answer = cli("purge", "--older-than", "0", "--give-back", role="operator")
    assert answer.code == Status.NOT_ALLOWED
    assert "only the owner" in answer.err
    assert calls.value("select count(*) from pyjobs.job") == 1


# -- worker

HANDLER = """
import asyncio, logging, pathlib, time
def work(batch, conn):
    conn.execute("select 1")
    batch.count(worked=len(batch.items))
    logging.getLogger("mine").info("my own line")
async def later(batch, conn):
    await conn.execute("select 1")
    batch.count(worked=len(batch.items))
def slow(batch, conn):
    pathlib.Path("begun").touch()
    while not batch.cancelled:
        time.sleep(0.01)
    raise RuntimeError("stopped")
class Namespace:
    handler = staticmethod(work)
number = 1
"""


@pytest.fixture
def handler(tmp_path: Path) -> None:
    """A module in the folder where `start` starts."""
    (tmp_path / "handler.py").write_text(HANDLER, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import no_such_thing\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["work", "later", "Namespace.handler"])
def test_worker_works_until_idle(name, start, calls, handler):
    job = calls.enqueue("imaging", 5, batch_size=2)
    other = calls.enqueue("other")
    process = start(
        *("worker", f"handler:{name}", "--queue", "imaging", "--queue", "mail", "--until-idle"),
        *("--concurrency", 2, "--max-batches", 3, "--lease", "2 minutes", "--name", "ada"),
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (calls.status(job), calls.status(other)) == ("SUCCESS", "PENDING")
    assert calls.progress(job)["stages"][0]["counters"] == {"worked": 5}
    assert {
        row["worker"]
        for row in calls.rows("select worker from pyjobs.batch where state = 'recorded'")
    } == {"ada"}
    assert out == ""
    assert "worker starts" in err


def test_worker_logs_json(start, calls, handler):
    calls.enqueue()
    process = start("worker", "handler:work", "--until-idle", "--json")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in err.splitlines()]
    assert {"worker starts", "batch recorded", "my own line"} <= {line["event"] for line in lines}
    assert all({"level", "timestamp"} <= set(line) for line in lines)


def test_worker_gives_back_what_it_holds_on_sigterm(start, calls, handler, tmp_path):
    job = calls.enqueue()
    process = start("worker", "handler:slow", "--drain-timeout", "0 seconds")
    wait_until((tmp_path / "begun").exists, "the handler has begun")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert calls.value("select state::text from pyjobs.batch") == "pending"
    assert calls.status(job) == "STARTED"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("handler", "'handler' names no handler"),
        (":work", "':work' names no handler"),
        ("no.such.module:work", "there is no module no"),
        ("handler:nothing", "handler has no nothing"),
        ("handler:number", "handler:number cannot be called"),
    ],
)
def test_worker_says_what_is_wrong_with_its_handler(named, message, start, handler):
    process = start("worker", named)
    _, err = process.communicate(timeout=30)
    assert process.returncode == Status.USAGE
    assert f"error: {message}\n" in err
    assert "Traceback" not in err


def test_what_the_handlers_module_raises_is_shown_as_it_is(start, handler):
    process = start("worker", "broken:work")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" in err
    assert "broken.py" in err
    assert "No module named 'no_such_thing'" in err


def test_worker_takes_intervals_as_postgresql_reads_them(start, handler):
    process = start("worker", "handler:work", "--lease", "a while")
    _, err = process.communicate(timeout=30)
    assert process.returncode == Status.USAGE
    assert "a while" in err


# -- deployment


@pytest.fixture
def empty(admin: psycopg.Connection, database: Database) -> Iterator[str]:
    """The connection string of an empty database's owner."""
    name = f"{database.name}_empty"
    admin.execute(
        sql.SQL("create database {} template template0 owner {}").format(
            sql.Identifier(name), sql.Identifier(database.cluster.owner)
        )
    )
    yield database.cluster.dsn(name, database.cluster.owner)
    admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_migrate_plans_does_and_finds_nothing_more(empty):
    url = {"PYJOBS_DATABASE_URL": empty}
    planned = invoke("migrate", "--plan", **url)
    assert planned.code == 0
    assert "migration 0001.types would be applied\n" in planned.out
    assert "  grants.sql\n" in planned.out
    assert invoke("status", **url).code == Status.NO_DATABASE
    done = invoke("migrate", "--json", **url).json
    assert done["changed"] is True
    assert done["planned"] is False
    assert done["migrations"][0] == "0001.types"
    assert "worker/claim_next_job.sql" in done["files"]
    assert (invoke("migrate", **url).code, invoke("migrate", **url).out) == (0, "nothing to do\n")
    assert invoke("migrate", "--plan", "--json", **url).json["changed"] is False
    assert invoke("status", **url).out == "no jobs\n"


def test_rollback_has_to_be_meant(empty):
    url = {"PYJOBS_DATABASE_URL": empty}
    assert invoke("migrate", **url).code == 0
    answer = invoke("rollback", "--all", **url)
    assert answer.code == Status.USAGE
    assert "this deletes data" in answer.err
    assert invoke("status", **url).code == 0
    answer = invoke("rollback", "--all", "--yes", **url)
    assert answer.code == 0
    assert "migration 0001.types undone\n" in answer.out
    assert invoke("status", **url).code == Status.NO_DATABASE
    assert invoke("rollback", "--yes", **url).out == "nothing to do\n"


def test_what_cannot_be_deployed_is_said(database, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise migrate.MigrationError("no\nbecause of this")

    monkeypatch.setattr(migrate, "migrate", refuse)
    answer = invoke("migrate", PYJOBS_DATABASE_URL=database.dsn)
    assert answer.code == Status.REFUSED
    assert answer.err == "error: no\nDETAIL: because of this\n"


def test_sql_prints_the_schema_and_needs_no_database():
    assert invoke("sql", **NO_URL).out == migrate.schema_sql()
    assert invoke("sql", "--no-transaction").out == migrate.schema_sql(transaction=False)
    assert invoke("sql", "--roles").out == migrate.roles_sql()
    assert invoke("sql", "--roles", "--json").json == {"sql": migrate.roles_sql()}


@pytest.mark.parametrize("code", [0, 1, 2])
def test_demo_is_run_as_asked_and_its_end_is_the_programs(code, monkeypatch, database, tmp_path):
    """The demo itself has tests of its own."""
    from pyjobs import demo

    asked = []

    def run(options: demo.Options, console: Any = None) -> int:
        asked.append(options)
        return code

    monkeypatch.setattr(demo, "run", run)
    # A database in the environment is somebody's: the demo takes one only by its option.
    url = {"PYJOBS_DATABASE_URL": database.dsn}
    assert invoke("demo", **url).code == code
    picture = tmp_path / "stars.png"
    answer = invoke("demo", "-d", "somewhere", "--output", picture, "--keep", "--json", **url)
    assert answer.code == code
    assert json.loads(answer.out) == {"passed": code == 0, "output": str(picture)}
    assert asked == [demo.Options(), demo.Options("somewhere", picture, keep=True)]


# -- how things are said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3661, "1 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_is_said_in_two_units(seconds, said):
    assert _output.duration(seconds) == said
