"""`watch`: live bars on a terminal, lines in a pipe, a JSON document a line with --json."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

from pyjobs import NotFound
from pyjobs.cli import _output
from pyjobs.cli._app import (
    LOOK,
    AsJson,
    CommandError,
    DatabaseUrl,
    Session,
    Status,
    Timeout,
    app,
    examples,
    exit_with,
)
from pyjobs.cli.look import LIVE, pace
from pyjobs.models import JobStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import Task, TaskID
    from rich.text import Text

    import pyjobs

# A held job ends only after somebody releases it: one that watches all does not wait for that.
_RUNNING = [status for status in LIVE if status is not JobStatus.CREATED]


@dataclass(frozen=True)
class View:
    """A job at a moment."""

    job_id: int
    name: str
    progress: pyjobs.Progress


class Board(Protocol):
    """Shows jobs as they change."""

    def __enter__(self) -> object:
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """Leave the last state in view."""

    def show(self, views: Sequence[View]) -> None:
        """Show their present state."""


class Lines:
    """A line for each job that changed: for a pipe, and for JSON."""

    def __init__(self) -> None:
        self._shown: dict[int, object] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to undo."""

    def show(self, views: Sequence[View]) -> None:
        """Print a line for each that is not as it was."""
        for view in views:
            # Pace and time left differ at every look; they alone are no news.
            state = (view.progress.status, view.progress.stages, view.progress.more_errors)
            if self._shown.get(view.job_id) == state:
                continue
            self._shown[view.job_id] = state
            if _output.wants_json():
                _output.as_json({"job_id": view.job_id, **view.progress.document}, line=True)
            else:
                print(self._line(view), flush=True)

    @staticmethod
    def _line(view: View) -> str:
        progress = view.progress
        done = sum(stage.processed for stage in progress.stages)
        total = sum(stage.total for stage in progress.stages)
        failed = sum(stage.failed for stage in progress.stages)
        name = f" {_output.printable(view.name)}" if view.name else ""
        return (
            f"{datetime.now().astimezone():%H:%M:%S} job {view.job_id}{name}: {progress.status}"
            f" {progress.progress:.1%}, {done}/{total} items"
            + (f", {failed} failed" if failed else "")
            + ("" if progress.status.final else pace(progress))
        )


class _StatusColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return _output.cell(task.fields["status"])


class Bars:
    """A bar for each job, or where there is only one, for each of its stages."""

    def __init__(self, console: Console, *, by_stage: bool) -> None:
        self._by_stage = by_stage
        self._tasks: dict[tuple[int, str], TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            _StatusColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>5.1f}%", justify="right"),
            TextColumn("{task.fields[done]}", justify="right"),
            TextColumn("{task.fields[failed]}", style="red"),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            expand=True,
        )

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, views: Sequence[View]) -> None:
        """Move the bars."""
        for view in views:
            progress = view.progress
            seconds = progress.document["summary"].get("seconds_left")
            left = _output.duration(seconds) if seconds and not progress.status.final else ""
            title = f"{view.job_id} {_output.printable(view.name)}".strip()
            if len(title) > 24:
                title = title[:23] + "\N{HORIZONTAL ELLIPSIS}"
            self._move(
                (view.job_id, ""),
                title,
                progress.status,
                progress.progress,
                sum(stage.processed for stage in progress.stages),
                sum(stage.total for stage in progress.stages),
                sum(stage.failed for stage in progress.stages),
                left,
            )
            for stage in progress.stages if self._by_stage else ():
                self._move(
                    (view.job_id, stage.key),
                    f"  {stage.key}",
                    stage.status,
                    stage.progress,
                    stage.processed,
                    stage.total,
                    stage.failed,
                    "",
                )

    def _move(
        self,
        key: tuple[int, str],
        title: str,
        status: str,
        progress: float,
        done: int,
        total: int,
        failed: int,
        left: str,
    ) -> None:
        fields: dict[str, Any] = {
            "status": status,
            "done": f"{done}/{total}",
            "failed": f"{failed} failed" if failed else "",
            "left": left,
        }
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(title, total=1, **fields)
        self._bars.update(self._tasks[key], completed=progress, **fields)


@app.command(
    rich_help_panel=LOOK,
    epilog=examples("pyjobs watch", "pyjobs watch 42", "pyjobs watch --json | tee progress.jsonl"),
)
def watch(
    ctx: typer.Context,
    jobs: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="[JOB]...", help="These jobs; all live ones by default.", show_default=False
        ),
    ] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", "-q", help="All live jobs of this queue.")
    ] = None,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.05, help="How often to look.")
    ] = 1.0,
    forever: Annotated[
        bool, typer.Option("--forever", help="Go on when no live job is left, and wait for more.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many.")] = 20,
    timeout: Timeout = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show jobs as they progress, until they end.

    Exits 1 where one that was watched ended in FAILURE or REVOKED.
    """
    session = Session(ctx, database_url, as_json)
    if jobs and (queue or forever):
        raise CommandError("--queue and --forever are for watching all jobs", Status.USAGE)
    deadline = None if timeout is None else time.monotonic() + timeout
    console = _output.console()
    # A producer may watch a job by its id; names are in the list, which only readers may see.
    names = dict.fromkeys(jobs or (), "")
    ended: dict[int, JobStatus] = {}
    with ExitStack() as stack:
        board: Board = (
            Bars(console, by_stage=len(names) == 1)
            if console.is_terminal and not as_json
            else Lines()
        )
        stack.enter_context(board)
        while True:
            if not jobs:
                live = session.client.jobs(queue, _RUNNING, limit=limit)
                names |= {job.id: job.name or "" for job in live}
            views = []
            for job_id in [job_id for job_id in names if job_id not in ended]:
                try:
                    progress = session.client.job_progress(job_id)
                except NotFound:
                    if jobs:
                        raise
                    del names[job_id]  # purged between two looks
                else:
                    views.append(View(job_id, names[job_id], progress))
            board.show(views)
            ended |= {
                view.job_id: view.progress.status for view in views if view.progress.status.final
            }
            if len(ended) == len(names) and not forever:
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise CommandError("not all of them have ended in time", Status.TIME_OUT)
            time.sleep(every)
    if not names and not as_json:
        _output.say("no live jobs")
    bad = any(status is not JobStatus.SUCCESS for status in ended.values())
    exit_with(Status.REFUSED if bad else Status.DONE)
