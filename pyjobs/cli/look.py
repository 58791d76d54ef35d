"""Verbs that only read: how far, why, what became of it, and whether it all adds up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from psycopg.rows import dict_row
from rich.text import Text

from pyjobs.cli import _output
from pyjobs.cli._app import (
    LOOK,
    AsJson,
    CommandError,
    DatabaseUrl,
    JobId,
    Session,
    Status,
    Timeout,
    app,
    examples,
    exit_with,
)
from pyjobs.cli._tell import tell_end
from pyjobs.models import JobStatus

if TYPE_CHECKING:
    from pyjobs.models import Job, Progress

OneJob = Annotated[
    int | None, typer.Argument(metavar="[JOB]", help="Only this job.", show_default=False)
]
LIVE = [status for status in JobStatus if not status.final]


@app.command(
    rich_help_panel=LOOK,
    epilog=examples(
        "pyjobs status", "pyjobs status --queue imaging --status FAILURE", "pyjobs status 42 --json"
    ),
)
def status(
    ctx: typer.Context,
    job: Annotated[
        int | None, typer.Argument(metavar="[JOB]", help="One job, in detail.", show_default=False)
    ] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="Of this queue.")] = None,
    statuses: Annotated[
        list[JobStatus] | None,
        typer.Option(
            "--status",
            "-s",
            help="Of this status; repeat it.",
            case_sensitive=False,
            show_default=False,
        ),
    ] = None,
    live: Annotated[bool, typer.Option("--live", "-l", help="Only what is not final.")] = False,
    name: Annotated[str | None, typer.Option("--name", "-n", help="With this name.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many.")] = 20,
    before: Annotated[
        int | None, typer.Option("--before", metavar="JOB", help="The next page: below this id.")
    ] = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's progress, or list jobs, the newest first."""
    session = Session(ctx, database_url, as_json)
    if job is not None:
        if queue or statuses or live or name or before is not None:
            raise CommandError("filters are for a list of jobs, not for one", Status.USAGE)
        _show_job(session, job)
        return
    if live and statuses:
        raise CommandError("give --live or --status, not both", Status.USAGE)
    found = session.client.jobs(
        queue, LIVE if live else statuses or None, name, limit=limit, before=before
    )
    if as_json:
        _output.as_json(found)
    elif not found:
        _output.say("no jobs")
    else:
        _output.table(
            ("job", "queue", "name", "status", "run", "priority", "made", "ended", "notes"),
            (
                (
                    one.id,
                    one.queue,
                    one.name,
                    one.status,
                    one.run,
                    one.priority,
                    one.created_at,
                    one.finished_at,
                    _notes(one),
                )
                for one in found
            ),
        )


def _notes(job: Job) -> str:
    """What keeps a live job back, or why a final one ended."""
    if job.status.final:
        # A good end needs no reason.
        return job.reason or "" if job.status is not JobStatus.SUCCESS else ""
    notes = []
    if job.paused:
        notes.append("paused")
    if job.queue_paused:
        notes.append("queue paused")
    if not job.sealed:
        notes.append("not sealed")
    if job.run_at > datetime.now(UTC):
        notes.append(f"from {_output.cell(job.run_at)}")
    return ", ".join(notes)


def _show_job(session: Session, job_id: int) -> None:
    progress = session.client.job_progress(job_id)
    if _output.wants_json():
        _output.as_json({"job_id": job_id, **progress.document})
        return
    _output.say(Text.assemble(f"job {job_id} is ", *_headline(progress)))
    _output.gap()
    _output.table(
        ("stage", "status", "progress", "done", "failed", "leased", "waiting", "counters"),
        (
            (
                stage.key,
                stage.status,
                f"{stage.progress:.1%}",
                f"{stage.processed}/{stage.total}",
                stage.failed,
                stage.leased,
                stage.pending,
                ", ".join(f"{name} {count}" for name, count in stage.counters.items()),
            )
            for stage in progress.stages
        ),
    )
    if progress.errors:
        _output.gap()
        _output.table(
            ("stage", "failed item", "error"),
            ((one.stage, _short(one.item), one.error) for one in progress.errors),
        )
    if progress.more_errors:
        _output.say(f"and {progress.more_errors} more failed items")


def _headline(progress: Progress) -> list[Text | str]:
    summary = progress.document["summary"]
    parts: list[Text | str] = [_output.cell(progress.status), f", {progress.progress:.1%}"]
    if not progress.status.final:
        parts.append(pace(progress))
    elif summary.get("rate"):
        parts.append(f", at {summary['rate']:.3g} items a second")
    return parts


def pace(progress: Progress) -> str:
    """How fast it goes and how long it still takes, where that is known."""
    summary = progress.document["summary"]
    if not summary.get("rate"):
        return ""
    text = f", {summary['rate']:.3g} items a second"
    if summary.get("seconds_left") is not None:
        text += f", {_output.duration(summary['seconds_left'])} left"
    return text


def _short(item: object) -> str:
    text = str(_output.cell(item))
    return text if len(text) <= 60 else f"{text[:59]}\N{HORIZONTAL ELLIPSIS}"


@app.command(rich_help_panel=LOOK, epilog=examples("pyjobs wait 42 --timeout 600 && ./publish"))
def wait(
    ctx: typer.Context,
    job: JobId,
    timeout: Timeout = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job ends; exit 0 only where it ends in SUCCESS."""
    tell_end(Session(ctx, database_url, as_json), job, timeout)


@app.command(rich_help_panel=LOOK, epilog=examples("pyjobs explain 42"))
def explain(
    ctx: typer.Context, job: JobId, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Say why a job is where it is, what shows it, and what to do."""
    found = Session(ctx, database_url, as_json).client.explain_job(job)
    _output.rows(found, ("finding", "evidence", "remedy"), f"nothing to say about job {job}")


@app.command(
    rich_help_panel=LOOK, epilog=examples("pyjobs audit", "pyjobs audit 42 || page-somebody")
)
def audit(
    ctx: typer.Context,
    job: OneJob = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a job's numbers, or all jobs', from the ledger; exit 1 where one differs."""
    found = Session(ctx, database_url, as_json).client.audit_job(job)
    _output.rows(
        found,
        ("job_id", "stage", "what", "recorded", "recomputed"),
        "all numbers agree with the ledger",
    )
    exit_with(Status.REFUSED if found else Status.DONE)


@app.command(rich_help_panel=LOOK, epilog=examples("pyjobs history 42"))
def history(
    ctx: typer.Context, job: JobId, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Show every change of a job's status: when, by whom and why."""
    found = Session(ctx, database_url, as_json).client.job_history(job)
    _output.rows(
        found,
        ("at", "run", "from_status", "to_status", "session_role", "by", "reason"),
        f"nothing happened to job {job}",
    )


@app.command(rich_help_panel=LOOK, epilog=examples("pyjobs queues"))
def queues(ctx: typer.Context, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the queues: what waits in them, what runs, and how many workers ask for them."""
    found = Session(ctx, database_url, as_json).client.queue_stats()
    _output.rows(
        found,
        (
            "queue",
            "paused",
            "waiting_jobs",
            "running_jobs",
            "pending_batches",
            "leased_batches",
            "oldest_waiting",
            "workers",
        ),
        "no queues",
    )


@app.command(rich_help_panel=LOOK, epilog=examples("pyjobs workers"))
def workers(ctx: typer.Context, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the workers that asked for work lately, and what they hold."""
    found = Session(ctx, database_url, as_json).client.active_workers()
    _output.rows(found, ("worker", "queues", "last_seen", "leased_batches"), "no active workers")


# The view has no function, and so the client no method.
_REFUSED = """\
select at, job_id, batch_id, stage, job_status, class, sqlstate, detail, session_role
from pyjobs.refused
where (%(job_id)s::bigint is null or job_id = %(job_id)s::bigint)
    and (class = 'suspicious' or not %(suspicious)s)
order by at desc
limit %(limit)s"""


@app.command(
    rich_help_panel=LOOK, epilog=examples("pyjobs refused --suspicious", "pyjobs refused 42")
)
def refused(
    ctx: typer.Context,
    job: OneJob = None,
    suspicious: Annotated[
        bool, typer.Option("--suspicious", "-s", help="Only where the job still ran.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many.")] = 20,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List late results that were refused, the newest first.

    They are normal after a cancel, a retry or an expired lease, and suspicious otherwise.
    """
    session = Session(ctx, database_url, as_json)
    with session.client.connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
        wanted = {"job_id": job, "suspicious": suspicious, "limit": limit}
        found = cursor.execute(_REFUSED, wanted).fetchall()
    columns = ("at", "job_id", "batch_id", "stage", "job_status", "class", "sqlstate", "detail")
    if as_json:
        _output.as_json(found)
    elif not found:
        _output.say("no refused results")
    else:
        _output.table(columns, ([row[name] for name in columns] for row in found))
