"""Verbs for producers: make jobs, add to them, let them go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from psycopg.types.json import Jsonb

from pyjobs.cli import _output
from pyjobs.cli._app import (
    FEED,
    AsJson,
    CommandError,
    DatabaseUrl,
    JobId,
    Session,
    Status,
    Timeout,
    app,
    examples,
    given,
)
from pyjobs.cli._tell import tell_end, tell_status

Queue = Annotated[str, typer.Argument(metavar="QUEUE", show_default=False)]
_SOURCE = "JSON, @FILE that holds it, or - for standard input."
Items = Annotated[
    str | None,
    typer.Option("--items", "-i", metavar="JSON", help=f"Array of items. {_SOURCE}"),
]
Lines = Annotated[
    str | None,
    typer.Option("--lines", metavar="FILE", help="Instead: each line is an item. - for stdin."),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", "-b", metavar="N", help="Items in a batch (1).")
]
Priority = Annotated[
    int | None, typer.Option("--priority", "-p", metavar="N", help="Higher goes first (0).")
]
RunAt = Annotated[
    str | None,
    typer.Option("--run-at", metavar="TIME", help="Not before: '2027-01-31 09:00', tomorrow, ..."),
]
Name = Annotated[str | None, typer.Option("--name", "-n", help="A name for people.")]
DedupeKey = Annotated[
    str | None,
    typer.Option("--dedupe-key", metavar="KEY", help="Only one live job of the queue has it."),
]
FailureThreshold = Annotated[
    str | None,
    typer.Option(
        "--failure-threshold",
        metavar="SHARE",
        help="The job fails where more of a stage's items failed (0.5).",
    ),
]
MaxAttempts = Annotated[
    int | None, typer.Option("--max-attempts", metavar="N", help="Attempts at a batch (3).")
]
Stages = Annotated[
    list[str] | None,
    typer.Option("--stage", "-s", metavar="KEY", help="A stage, in order; repeat it (process)."),
]
Barriers = Annotated[
    list[str] | None,
    typer.Option("--barrier", metavar="KEY", help="This stage waits for all before it; repeat it."),
]
Hold = Annotated[bool, typer.Option("--hold", help="Leave it CREATED, until `release`.")]
NoSeal = Annotated[bool, typer.Option("--no-seal", help="More items follow, until `seal`.")]


def json_text(text: str) -> Any:
    """JSON as it was written: PostgreSQL parses it, and says what is wrong with it."""
    return Jsonb(_read(text), dumps=str)


def _read(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    if not source.startswith("@"):
        return source
    return _read_file(source[1:])


def _read_file(name: str) -> str:
    if name == "-":
        return sys.stdin.read()
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {name}: {error}", Status.USAGE) from error


def _items(items: str | None, lines: str | None) -> Any:
    if items is not None and lines is not None:
        raise CommandError("give --items or --lines, not both", Status.USAGE)
    if lines is not None:
        # Not splitlines(): it also splits at characters that a file name may have.
        return [line.removesuffix("\r") for line in _read_file(lines).split("\n") if line.strip()]
    return None if items is None else json_text(items)


def _options(
    priority: int | None,
    run_at: str | None,
    name: str | None,
    dedupe_key: str | None,
    max_attempts: int | None,
    failure_threshold: str | None,
    stages: list[str] | None,
    barriers: list[str] | None,
    hold: bool,
    no_seal: bool,
) -> dict[str, Any]:
    return given(
        priority=priority,
        run_at=run_at,
        name=name,
        dedupe_key=dedupe_key,
        max_attempts=max_attempts,
        failure_threshold=failure_threshold,
        stages=stages or None,
        barriers=barriers or None,
        hold=hold or None,
        seal=False if no_seal else None,
    )


@app.command(
    rich_help_panel=FEED,
    epilog=examples(
        """pyjobs enqueue imaging --items '["a.jpg", "b.jpg"]' --batch-size 10 --name survey""",
        "find . -name '*.jpg' | pyjobs enqueue imaging --lines - --wait",
        "pyjobs enqueue mail --params '{\"to\": \"ada@example.org\"}' --run-at 'tomorrow 09:00'",
    ),
)
def enqueue(
    ctx: typer.Context,
    queue: Queue,
    items: Items = None,
    lines: Lines = None,
    params: Annotated[
        str | None, typer.Option("--params", metavar="JSON", help=f"For every batch. {_SOURCE}")
    ] = None,
    batch_size: BatchSize = None,
    priority: Priority = None,
    run_at: RunAt = None,
    name: Name = None,
    dedupe_key: DedupeKey = None,
    failure_threshold: FailureThreshold = None,
    max_attempts: MaxAttempts = None,
    stages: Stages = None,
    barriers: Barriers = None,
    hold: Hold = False,
    no_seal: NoSeal = False,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Until it ends; 0 only where it succeeds.")
    ] = False,
    timeout: Timeout = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a job and print its id. Without items it has one: its params."""
    session = Session(ctx, database_url, as_json)
    options = _options(
        priority,
        run_at,
        name,
        dedupe_key,
        max_attempts,
        failure_threshold,
        stages,
        barriers,
        hold,
        no_seal,
    )
    job_id = session.client.enqueue_job(
        queue,
        **given(
            items=_items(items, lines),
            params=None if params is None else json_text(params),
            batch_size=batch_size,
        ),
        **options,
    )
    if wait:
        tell_end(session, job_id, timeout)
    else:
        _output.answer({"job_id": job_id}, str(job_id))


@app.command(
    "enqueue-many",
    rich_help_panel=FEED,
    epilog=examples(
        """pyjobs enqueue-many mail '[{"to": "ada@example.org"}, {"to": "bob@example.org"}]'"""
    ),
)
def enqueue_many(
    ctx: typer.Context,
    queue: Queue,
    params: Annotated[str, typer.Argument(metavar="JSON", help=f"Array of params. {_SOURCE}")],
    priority: Priority = None,
    run_at: RunAt = None,
    name: Name = None,
    max_attempts: MaxAttempts = None,
    hold: Hold = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a job of one batch for each element of an array; print their ids, a line each."""
    session = Session(ctx, database_url, as_json)
    options = _options(
        priority, run_at, name, None, max_attempts, None, None, None, hold, no_seal=False
    )
    job_ids = session.client.enqueue_jobs(queue, json_text(params), **options)
    if as_json:
        _output.as_json({"job_ids": job_ids})
    else:
        for job_id in job_ids:
            _output.say(str(job_id))


@app.command(
    rich_help_panel=FEED,
    epilog=examples("""pyjobs add 42 --items '["c.jpg"]'""", "pyjobs add 42 --lines more.txt"),
)
def add(
    ctx: typer.Context,
    job: JobId,
    items: Items = None,
    lines: Lines = None,
    stage: Annotated[
        str | None, typer.Option("--stage", "-s", metavar="KEY", help="Which stage (the first).")
    ] = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add items to a job made with --no-seal."""
    session = Session(ctx, database_url, as_json)
    found = _items(items, lines)
    if found is None:
        raise CommandError("no items: give --items or --lines", Status.USAGE)
    tell_status(job, session.client.add_items(job, found, stage))


@app.command(rich_help_panel=FEED, epilog=examples("pyjobs seal 42"))
def seal(
    ctx: typer.Context, job: JobId, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Say that no more items come, so that the job can end."""
    session = Session(ctx, database_url, as_json)
    tell_status(job, session.client.seal_job(job))


@app.command(rich_help_panel=FEED, epilog=examples("pyjobs release 42"))
def release(
    ctx: typer.Context, job: JobId, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Let a job run that was made with --hold."""
    session = Session(ctx, database_url, as_json)
    tell_status(job, session.client.release_job(job))
