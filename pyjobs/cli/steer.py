"""Verbs for operators: stop, repeat, set aside, hold, hurry, clean up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import psycopg
import typer
from psycopg.rows import class_row
from rich.text import Text

from pyjobs.cli import _output
from pyjobs.cli._app import (
    STEER,
    AsJson,
    CommandError,
    DatabaseUrl,
    JobId,
    Reason,
    Session,
    Status,
    Timeout,
    app,
    examples,
    exit_with,
    given,
)
from pyjobs.cli._tell import tell_end, tell_status
from pyjobs.models import JobStatus

Queue = Annotated[str, typer.Argument(metavar="QUEUE", show_default=False)]
Why = Annotated[str, typer.Option("--reason", "-r", help="Why; it is kept in the history.")]


@app.command(
    rich_help_panel=STEER,
    epilog=examples(
        'pyjobs cancel 42 --reason "wrong pictures" --wait', 'pyjobs cancel 42 --grace "2 minutes"'
    ),
)
def cancel(
    ctx: typer.Context,
    job: JobId,
    reason: Reason = None,
    grace: Annotated[
        str | None,
        typer.Option(
            "--grace",
            "-g",
            metavar="INTERVAL",
            help="How long leased batches may still be recorded (30 seconds); 0: not at all.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Until it is REVOKED.")] = False,
    timeout: Timeout = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Stop a job: nothing more is claimed, at once.

    It is CANCELING while workers still hold batches, then REVOKED. Exits 1 where it had ended
    otherwise before.
    """
    session = Session(ctx, database_url, as_json)
    status = session.client.cancel_job(job, **given(reason=reason, grace=grace))
    if wait and not status.final:
        tell_end(session, job, timeout, [JobStatus.REVOKED])
        return
    if status in {JobStatus.CANCELING, JobStatus.REVOKED}:
        tell_status(job, status)
        return
    _output.answer(
        {"job_id": job, "status": status},
        f"job {job} is {status}: it ended before it was cancelled",
    )
    exit_with(Status.REFUSED)


@app.command(
    rich_help_panel=STEER,
    epilog=examples("pyjobs retry 42 --failed-only", "pyjobs retry 42 --wait"),
)
def retry(
    ctx: typer.Context,
    job: JobId,
    failed_only: Annotated[
        bool, typer.Option("--failed-only", "-f", help="Only what failed or was never finished.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Until it ends; 0 only where it succeeds.")
    ] = False,
    timeout: Timeout = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Start the next run of a job that has ended."""
    session = Session(ctx, database_url, as_json)
    status = session.client.retry_job(job, **given(failed_only=failed_only or None))
    if wait:
        tell_end(session, job, timeout)
    else:
        tell_status(job, status)


class End(StrEnum):
    """What a job can be forced to."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"


@app.command(
    rich_help_panel=STEER,
    epilog=examples(
        "pyjobs finalize 42", "pyjobs finalize 42 --status FAILURE --reason 'bad input'"
    ),
)
def finalize(
    ctx: typer.Context,
    job: JobId,
    status: Annotated[
        End | None,
        typer.Option("--status", "-s", help="Force it, fencing its workers.", case_sensitive=False),
    ] = None,
    reason: Reason = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """End a job that is complete, or force its end; exits 1 where this did not end it."""
    session = Session(ctx, database_url, as_json)
    end = session.client.finalize_job(job, **given(status=status, reason=reason))
    text = Text.assemble(f"job {job} is ", _output.cell(end.status))
    if not end.transitioned:
        text.append(", and was before" if end.status.final else ": it is not complete")
    _output.answer({"job_id": job, "transitioned": end.transitioned, "status": end.status}, text)
    exit_with(Status.DONE if end.transitioned else Status.REFUSED)


@app.command(
    rich_help_panel=STEER, epilog=examples('pyjobs quarantine 42 --reason "results look odd"')
)
def quarantine(
    ctx: typer.Context,
    job: JobId,
    reason: Why,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Set a job aside as UNKNOWN, fencing its workers, until `resolve`."""
    session = Session(ctx, database_url, as_json)
    tell_status(job, session.client.quarantine_job(job, reason))


class Resolution(StrEnum):
    """How a job that was set aside goes on."""

    RETRY = "RETRY"
    FAILURE = "FAILURE"


@app.command(
    rich_help_panel=STEER,
    epilog=examples('pyjobs resolve 42 RETRY --reason "looked fine after all"'),
)
def resolve(
    ctx: typer.Context,
    job: JobId,
    status: Annotated[
        Resolution,
        typer.Argument(
            case_sensitive=False, help="RETRY goes on with the same run.", show_default=False
        ),
    ],
    reason: Why,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Decide about a job that was set aside."""
    session = Session(ctx, database_url, as_json)
    tell_status(job, session.client.resolve_job(job, status, reason))


@app.command(rich_help_panel=STEER, epilog=examples("pyjobs pause 42"))
def pause(
    ctx: typer.Context, job: JobId, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Let nothing of a job be claimed. What is in flight may still be recorded."""
    session = Session(ctx, database_url, as_json)
    tell_status(job, session.client.pause_job(job))


@app.command(rich_help_panel=STEER, epilog=examples("pyjobs resume 42"))
def resume(
    ctx: typer.Context, job: JobId, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Undo `pause`."""
    session = Session(ctx, database_url, as_json)
    tell_status(job, session.client.resume_job(job))


@app.command("pause-queue", rich_help_panel=STEER, epilog=examples("pyjobs pause-queue imaging"))
def pause_queue(
    ctx: typer.Context, queue: Queue, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Let nothing of a queue be claimed. What is in flight may still be recorded."""
    Session(ctx, database_url, as_json).client.pause_queue(queue)
    _output.answer({"queue": queue, "paused": True}, f"queue {queue} is paused")


@app.command("resume-queue", rich_help_panel=STEER, epilog=examples("pyjobs resume-queue imaging"))
def resume_queue(
    ctx: typer.Context, queue: Queue, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Undo `pause-queue`."""
    Session(ctx, database_url, as_json).client.resume_queue(queue)
    _output.answer({"queue": queue, "paused": False}, f"queue {queue} is not paused")


@app.command(
    rich_help_panel=STEER,
    epilog=examples("pyjobs priority 42 10", "pyjobs priority 42 -5"),
    # So that -5 is a number and not an option.
    context_settings={"ignore_unknown_options": True},
)
def priority(
    ctx: typer.Context,
    job: JobId,
    number: Annotated[
        int, typer.Argument(metavar="N", help="Higher goes first.", show_default=False)
    ],
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Change a job's priority."""
    session = Session(ctx, database_url, as_json)
    tell_status(job, session.client.set_priority(job, number))


@app.command(
    rich_help_panel=STEER,
    epilog=examples("pyjobs reap", 'pyjobs reap --stale-after "10 minutes" --dry-run'),
)
def reap(
    ctx: typer.Context,
    stale_after: Annotated[
        str | None,
        typer.Option(
            "--stale-after",
            metavar="INTERVAL",
            help="Also revoke jobs without progress for that long, though workers asked for work.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say it.")] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take back expired leases and end overdue cancels. Workers do that too, now and then."""
    session = Session(ctx, database_url, as_json)
    found = session.client.reap(**given(stale_after=stale_after, dry_run=dry_run or None))
    _output.rows(found, ("action", "job_id", "batch_id", "detail"), "nothing to reap")


@dataclass
class _Table:
    name: str
    ours: bool
    size: int


_TABLES = """
select format('%I.%I', n.nspname, c.relname) as name,
    pg_has_role(c.relowner, 'usage') as ours, pg_total_relation_size(c.oid) as size
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'pyjobs_internal' and c.relkind = 'r'
order by c.relname
"""


@app.command(
    rich_help_panel=STEER,
    epilog=examples('pyjobs purge --older-than "90 days"', "pyjobs purge --give-back"),
)
def purge(
    ctx: typer.Context,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="INTERVAL", help="Since they ended, at least."),
    ] = None,
    give_back: Annotated[
        bool,
        typer.Option(
            "--give-back",
            help="Give the room back to the disk: vacuum (truncate) and reindex, as the owner.",
        ),
    ] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete jobs that ended long ago, with all that is known of them.

    With --give-back, or by that alone, files are cut where their end has become empty, and indexes
    are made anew, while all work. It waits for transactions that are open.
    """
    session = Session(ctx, database_url, as_json)
    if older_than is None and not give_back:
        raise CommandError("say what to purge: --older-than, or --give-back", Status.USAGE)
    arguments: dict[str, Any] = {"older_than": older_than}
    if not give_back:
        count = session.client.purge_jobs(**arguments)
        _output.answer({"purged": count}, f"{count} jobs deleted")
        return
    with psycopg.connect(session.url, autocommit=True, row_factory=class_row(_Table)) as conn:
        tables = conn.execute(_TABLES).fetchall()
        # Who may not vacuum a table is only warned; so this is asked first.
        if not tables or not all(table.ours for table in tables):
            raise CommandError(
                "only the owner of the tables can give back their room", Status.NOT_ALLOWED
            )
        count = 0 if older_than is None else session.client.purge_jobs(**arguments)
        before = sum(table.size for table in conn.execute(_TABLES))
        names = ", ".join(table.name for table in tables)
        conn.execute(f"vacuum (truncate, analyze) {names}".encode())
        conn.execute("reindex schema concurrently pyjobs_internal")
        freed = int(before - sum(table.size for table in conn.execute(_TABLES)))
    _output.answer(
        {"purged": count, "given_back": freed},
        f"{count} jobs deleted, {freed / 1e6:.1f} MB given back",
    )
