"""The program: the options of every verb, the exit statuses, and how it says what went wrong."""

from __future__ import annotations

import os
import sys
from enum import IntEnum
from typing import Annotated, Any

import psycopg
import typer
from rich.markup import escape
from typer.core import TyperGroup

import pyjobs
from pyjobs import embedded, migrate
from pyjobs.cli import _output

URL_VARIABLE = "PYJOBS_DATABASE_URL"


class Status(IntEnum):
    """What the program exits with. 0 only where what was asked for was done."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    NO_DATABASE = 4
    NOT_ALLOWED = 5
    TIME_OUT = 124
    INTERRUPTED = 130


EXIT_STATUSES = {
    Status.DONE: "what was asked for was done",
    Status.REFUSED: "refused or failed: the job ended in FAILURE or REVOKED, the audit found rows",
    Status.USAGE: "wrong usage, or an argument that the database does not take (PJ005)",
    Status.NOT_FOUND: "no such job or batch (PJ004)",
    Status.NO_DATABASE: "the database cannot be reached, or is not migrated",
    Status.NOT_ALLOWED: "the role that connects may not do this",
    Status.TIME_OUT: "the time given by --timeout ran out",
    Status.INTERRUPTED: "interrupted from the keyboard",
}


class CommandError(Exception):
    """Something to tell the user, without a traceback."""

    def __init__(
        self,
        message: str,
        status: Status = Status.REFUSED,
        *,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint


# What the server says when it has no pyjobs: invalid_schema_name, undefined_function, _table.
_NOT_MIGRATED = {"3F000", "42883", "42P01"}
_OWN_STATUS = {"PJ004": Status.NOT_FOUND, "PJ005": Status.USAGE}


def _explain(error: Exception) -> CommandError | None:
    """What to say about an error; None for one that is a fault of this program."""
    if isinstance(error, CommandError):
        return error
    if isinstance(error, pyjobs.Error):
        return CommandError(
            error.message,
            _OWN_STATUS.get(error.sqlstate, Status.REFUSED),
            sqlstate=error.sqlstate,
            detail=error.detail,
            hint=error.hint,
        )
    if isinstance(error, psycopg.Error):
        return _explain_psycopg(error)
    if isinstance(error, migrate.MigrationError):
        message, _, detail = str(error).partition("\n")
        return CommandError(message, detail=detail or None)
    if isinstance(error, embedded.ServerError):
        return CommandError(str(error))
    if isinstance(error, OverflowError):
        return CommandError("a number is out of range", Status.USAGE)
    return None


def _explain_psycopg(error: psycopg.Error) -> CommandError:
    state = error.sqlstate or ""
    diag = error.diag
    status, hint = Status.REFUSED, diag.message_hint
    if state in _NOT_MIGRATED:
        status, hint = Status.NO_DATABASE, "Is it migrated? Run: pyjobs migrate"
    elif state == "42501":
        status = Status.NOT_ALLOWED
        hint = hint or "The verb needs a role of pyjobs that may do it; see: pyjobs sql --roles"
    elif state.startswith("22"):
        status = Status.USAGE
    elif isinstance(error, psycopg.OperationalError) and (
        not state or state.startswith(("08", "28", "3D", "57P"))
    ):
        status = Status.NO_DATABASE
    elif not state and isinstance(error, psycopg.ProgrammingError | psycopg.DataError):
        status = Status.USAGE
    return CommandError(
        diag.message_primary or str(error).strip(),
        status,
        sqlstate=state or None,
        detail=diag.message_detail,
        hint=hint,
    )


class _Program(TyperGroup):
    """The group of all verbs: says what went wrong, and exits with the status for it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(Status.INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has gone, as `head` does. Nothing more can be said there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Status.REFUSED) from None
        except Exception as error:
            told = _explain(error)
            if told is None:
                raise
            _output.error(told.message, told.sqlstate, told.detail, told.hint)
            raise typer.Exit(told.status) from error


app = typer.Typer(
    name="pyjobs",
    cls=_Program,
    help="Job processing inside PostgreSQL: deploy it, feed it, work it, watch it, steer it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=escape(
        "Exit status:\n\n"
        + "\n".join(f"{status.value:>3}  {text}" for status, text in EXIT_STATUSES.items())
    ),
)

DEPLOY, FEED, WORK, LOOK, STEER = "Deploy", "Feed", "Work", "Look", "Steer"
_CONNECTION = "Every verb"

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        "-d",
        # The variable is read by the program's own option, so that one given there goes before it.
        metavar="URL",
        help=f"As psql takes it; or set {URL_VARIABLE}. Keep the password in PGPASSFILE.",
        show_default=False,
        rich_help_panel=_CONNECTION,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON, for programs; errors too.", rich_help_panel=_CONNECTION
    ),
]
JobId = Annotated[int, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
Reason = Annotated[
    str | None, typer.Option("--reason", "-r", help="Why; it is kept in the history.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0, help="Wait no longer; then exit 124."),
]


def examples(*lines: str) -> str:
    """The epilog of a verb's help."""
    return escape("\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *lines]))


@app.callback(invoke_without_command=True)
def _options(
    ctx: typer.Context,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            "-d",
            envvar=URL_VARIABLE,
            metavar="URL",
            help="The database; an option of each verb, too.",
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"pyjobs {pyjobs.__version__}")
        raise typer.Exit
    ctx.obj = database_url


class Session:
    """One run of a verb: its database, and how it answers."""

    def __init__(self, ctx: typer.Context, database_url: str | None, as_json: bool) -> None:
        _output.choose(as_json=as_json)
        self._ctx = ctx
        self._url = database_url or ctx.obj
        self._client: pyjobs.Client | None = None

    @property
    def url(self) -> str:
        """The database to use; the user has to name one."""
        if not self._url:
            raise CommandError(
                "no database named",
                Status.USAGE,
                hint=f"Give --database-url, or set {URL_VARIABLE}.",
            )
        return str(self._url)

    @property
    def client(self) -> pyjobs.Client:
        """A client that is closed when the verb ends."""
        if self._client is None:
            self._client = pyjobs.Client(self.url)
            self._ctx.call_on_close(self._client.close)
        return self._client


def exit_with(status: Status) -> None:
    """End here with this status; 0 just goes on."""
    if status:
        raise typer.Exit(status)


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that were given: the others have their defaults in SQL."""
    return {name: value for name, value in arguments.items() if value is not None}
