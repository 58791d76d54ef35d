"""Verbs for deployment: the schema, and the demo."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pyjobs import migrate as deployment
from pyjobs.cli import _output
from pyjobs.cli._app import (
    DEPLOY,
    AsJson,
    CommandError,
    DatabaseUrl,
    Session,
    Status,
    app,
    examples,
    exit_with,
)

if TYPE_CHECKING:
    from pyjobs.migrate import Report

LockWait = Annotated[
    float | None,
    typer.Option(
        "--lock-wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for another deployment (as long as it takes).",
    ),
]


@app.command(
    rich_help_panel=DEPLOY,
    epilog=examples("pyjobs migrate --plan", "pyjobs migrate --database-url postgresql://db/app"),
)
def migrate(
    ctx: typer.Context,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done, change nothing.")
    ] = False,
    lock_wait: LockWait = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Bring a database to this version's schema.

    Tables by migrations, functions by checksum. Safe to repeat, and from many places at once.
    """
    session = Session(ctx, database_url, as_json)
    report = deployment.migrate(session.url, plan=plan, wait=lock_wait)
    _tell(report, "applied")


@app.command(
    rich_help_panel=DEPLOY,
    epilog=examples("pyjobs rollback --yes", "pyjobs rollback --all --yes"),
)
def rollback(
    ctx: typer.Context,
    count: Annotated[
        int, typer.Option("--count", "-n", metavar="N", min=1, help="How many migrations.")
    ] = 1,
    everything: Annotated[bool, typer.Option("--all", help="All: every job is gone.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Needed: this deletes data.")] = False,
    lock_wait: LockWait = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Undo the last migrations, with the data in what they made, and drop the functions."""
    session = Session(ctx, database_url, as_json)
    if not yes:
        raise CommandError(
            "this deletes data", Status.USAGE, hint="Say so with --yes, if that is what you want."
        )
    report = deployment.rollback(session.url, count=None if everything else count, wait=lock_wait)
    _tell(report, "undone")


@app.command(
    rich_help_panel=DEPLOY,
    epilog=examples(
        "pyjobs sql | psql -v ON_ERROR_STOP=1 app", "pyjobs sql --roles | psql  # an administrator"
    ),
)
def sql(
    ctx: typer.Context,
    roles: Annotated[
        bool, typer.Option("--roles", help="Only the roles: what needs CREATEROLE.")
    ] = False,
    no_transaction: Annotated[
        bool, typer.Option("--no-transaction", help="For a tool that has one of its own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the schema as plain SQL, for deploying with another tool. Needs no database."""
    Session(ctx, None, as_json)
    text = (
        deployment.roles_sql() if roles else deployment.schema_sql(transaction=not no_transaction)
    )
    if as_json:
        _output.as_json({"sql": text})
    else:
        typer.echo(text, nl=False)


def _tell(report: Report, done: str) -> None:
    if _output.wants_json():
        _output.as_json({**_output.plain(report), "changed": report.changed})
        return
    if not report.changed:
        _output.say("nothing to do")
        return
    would = "would be " if report.planned else ""
    for name in report.migrations:
        _output.say(f"migration {name} {would}{done}")
    if report.files:
        _output.say(f"{len(report.files)} files of sql/ {would}deployed")
        if report.planned:
            for name in report.files:
                _output.say(f"  {name}")
    for name in report.removed:
        _output.say(f"{name} {would}forgotten: it is no more")
    for name in report.dropped:
        _output.say(f"{name} {would}dropped")


@app.command(
    rich_help_panel=DEPLOY, epilog=examples("pyjobs demo", "pyjobs demo --keep --output stars.png")
)
def demo(
    ctx: typer.Context,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            "-d",
            metavar="URL",
            help="A database to run in, as its owner; by default a server of the demo's own.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the marked picture goes.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server up, and say how to look around.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Survey a picture of the Hubble telescope, with everything going wrong that can."""
    # Needs much that nothing else here does.
    from pyjobs import demo as survey  # noqa: PLC0415

    Session(ctx, database_url, as_json)
    defaults = survey.Options()
    options = survey.Options(database_url, output or defaults.output, keep)
    if not as_json:
        exit_with(_demo_status(survey.run(options)))
        return
    # Standard output is for the answer; what it shows meanwhile goes to standard error.
    status = survey.run(options, Console(stderr=True))
    _output.as_json({"passed": status == 0, "output": str(options.output)})
    exit_with(_demo_status(status))


def _demo_status(status: int) -> Status:
    return Status(status) if status in set(Status) else Status.REFUSED
