"""`worker`: run a handler on the batches of some queues."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from pyjobs.cli._app import (
    WORK,
    AsJson,
    CommandError,
    DatabaseUrl,
    Session,
    Status,
    app,
    examples,
    given,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

Interval = "INTERVAL"


class Level(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@app.command(
    rich_help_panel=WORK,
    epilog=examples(
        "pyjobs worker shop.images:make_thumbnails --queue imaging --concurrency 4",
        'pyjobs worker shop.mail:send -q mail --max-batches 20 --lease "2 minutes" --until-idle',
    ),
)
def worker(
    ctx: typer.Context,
    handler: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:HANDLER",
            help="handler(batch, conn), plain or async; modules of this folder are found too.",
            show_default=False,
        ),
    ],
    queues: Annotated[
        list[str] | None,
        typer.Option("--queue", "-q", metavar="QUEUE", help="Repeat it for more (default)."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", metavar="N", min=1, help="Batches worked at once (1)."),
    ] = None,
    max_batches: Annotated[
        int | None,
        typer.Option("--max-batches", "-b", metavar="N", help="Batches leased at once (1)."),
    ] = None,
    max_jobs: Annotated[
        int | None,
        typer.Option(
            "--max-jobs",
            "-j",
            metavar="N",
            min=1,
            help="For small jobs: leased at once, one batch of each, and recorded together (1).",
        ),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease",
            metavar=Interval,
            help="How long a batch stays leased when the worker is gone (60 seconds).",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="As `workers` shows it (host and process).")
    ] = None,
    poll: Annotated[
        str | None,
        typer.Option(
            "--poll",
            metavar=Interval,
            help="Between questions for work (1 second, with --listen 5).",
        ),
    ] = None,
    drain_timeout: Annotated[
        str | None,
        typer.Option(
            "--drain-timeout",
            metavar=Interval,
            help="On SIGTERM: to finish in; the rest is given back (30 seconds).",
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option("--time-limit", metavar=Interval, help="For a batch, then it is lost (none)."),
    ] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when there is nothing to claim.")
    ] = False,
    listen: Annotated[
        bool,
        typer.Option("--listen", help="Be woken by work; not behind a transaction-pooling proxy."),
    ] = False,
    log_level: Annotated[
        Level, typer.Option("--log-level", help="How much to log, on standard error.")
    ] = Level.INFO,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Work batches until SIGTERM: finishes what it has begun, gives back the rest, exits 0.

    With --json it logs JSON. A second signal gives everything back at once.
    """
    session = Session(ctx, database_url, as_json)
    function = load(handler)
    _log_to_stderr(log_level, as_json=as_json)
    options = given(
        queues=queues or None,
        concurrency=concurrency,
        max_batches=max_batches,
        max_jobs=max_jobs,
        name=name,
        listen=listen or None,
        **{
            option: _interval(session, text)
            for option, text in (
                ("lease", lease),
                ("poll", poll),
                ("drain_timeout", drain_timeout),
                ("time_limit", time_limit),
            )
            if text is not None
        },
    )
    if _is_async(function):
        asyncio.run(_run_async(session.url, function, options, until_idle=until_idle))
        return
    from pyjobs import Worker  # noqa: PLC0415

    Worker(session.client, function, **options).run(until_idle=until_idle)


async def _run_async(
    url: str, function: Callable[..., Any], options: dict[str, Any], *, until_idle: bool
) -> None:
    from pyjobs import AsyncClient, AsyncWorker  # noqa: PLC0415

    async with AsyncClient(url) as client:
        await AsyncWorker(client, function, **options).run(until_idle=until_idle)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  (an object that is called)
    )


def load(named: str) -> Callable[..., Any]:
    """Find the handler that MODULE:HANDLER names. What its module raises is its author's to see."""
    module_name, colon, path = named.partition(":")
    if not (module_name and colon and path):
        raise CommandError(
            f"{named!r} names no handler",
            Status.USAGE,
            hint="Write MODULE:HANDLER, as in shop.images:make_thumbnails.",
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only where it is the module itself that is missing, not something that it imports.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise CommandError(f"there is no module {error.name}", Status.USAGE) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise CommandError(f"{module_name} has no {path}", Status.USAGE)
        found = getattr(found, part)
    if not callable(found):
        raise CommandError(f"{named} cannot be called", Status.USAGE)
    return found  # type: ignore[no-any-return]


def _interval(session: Session, text: str) -> timedelta:
    """An interval as PostgreSQL reads it."""
    with session.client.connection() as conn:
        row = conn.execute("select %s::interval", [text]).fetchone()
    assert row is not None  # noqa: S101
    return row[0]  # type: ignore[no-any-return]


def _log_to_stderr(level: Level, *, as_json: bool) -> None:
    """Log the worker's lines and the handler's own in one form."""
    common: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    if as_json:
        common.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # A handler may have closed standard error: a line that cannot be written is no one's fault.
    logging.raiseExceptions = False
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
