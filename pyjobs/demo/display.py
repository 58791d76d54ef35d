"""What one sees while the demo runs: a live board on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

WIDTH = 80
LINE_EVERY = 4.0  # seconds between two lines of progress in a pipe

STATUS_STYLE = {
    "CREATED": "dim",
    "PENDING": "cyan",
    "STARTED": "cyan",
    "RETRY": "yellow",
    "CANCELING": "yellow",
    "UNKNOWN": "magenta",
    "SUCCESS": "bold green",
    "FAILURE": "bold red",
    "REVOKED": "bold yellow",
}


@dataclass(frozen=True)
class StageView:
    """One bar: a stage as `job_progress` tells of it."""

    key: str
    status: str
    total: int
    processed: int
    failed: int


@dataclass(frozen=True)
class JobView:
    name: str
    status: str
    run: int
    stages: list[StageView]


@dataclass(frozen=True)
class WorkerView:
    name: str
    pid: int
    state: str  # running, suspended, killed, ended
    doing: str


@dataclass
class Note:
    """Something that happened, with the seconds since the start."""

    at: float
    text: str
    style: str = ""


@dataclass
class Snapshot:
    elapsed: float
    jobs: list[JobView] = field(default_factory=list)
    workers: list[WorkerView] = field(default_factory=list)


class Board(Protocol):
    """Shows what is going on. `note` may be called from any thread, `update` from one."""

    def __enter__(self) -> Board: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, snapshot: Snapshot) -> None: ...

    def note(self, note: Note) -> None: ...


def make_board(console: Console) -> Board:
    return LiveBoard(console) if console.is_terminal else LineBoard(console)


class LiveBoard:
    """Bars of all jobs, what each worker does, and the last events, on one screen of 80 columns."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._notes: list[Note] = []
        self._live = Live(console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> LiveBoard:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def note(self, note: Note) -> None:
        self._notes.append(note)

    def update(self, snapshot: Snapshot) -> None:
        self._live.update(self.render(snapshot))

    def render(self, snapshot: Snapshot) -> RenderableType:
        jobs, workers = _jobs_table(snapshot), _workers_table(snapshot)
        used = 5 + sum(len(job.stages) for job in snapshot.jobs) + len(snapshot.workers)
        room = max(3, min(9, self._console.height - used - 1))
        events = [_note_line(note) for note in self._notes[-room:]]
        return Group(jobs, Text(), workers, Text(), *events)


class LineBoard:
    """Plain lines: every event, and every few seconds how far the jobs are."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_line = 0.0

    def __enter__(self) -> LineBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def note(self, note: Note) -> None:
        self._console.print(_note_line(note), soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + LINE_EVERY
        told = [f"{job.name.removesuffix(' plate')} {_brief(job)}" for job in snapshot.jobs]
        self._console.print(f"{snapshot.elapsed:5.1f}s  {' | '.join(told)}", soft_wrap=True)


def _brief(job: JobView) -> str:
    done = sum(stage.processed for stage in job.stages)
    return f"{job.status} {done}/{sum(stage.total for stage in job.stages)}"


def _note_line(note: Note) -> Text:
    line = Text(f"{note.at:5.1f}s  ", style="dim")
    line.append(note.text, style=note.style or "default")
    line.truncate(WIDTH, overflow="ellipsis")
    return line


def _jobs_table(snapshot: Snapshot) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), width=WIDTH, header_style="dim")
    table.add_column("job", width=12)
    table.add_column("run", width=3)
    table.add_column("status", width=10)
    table.add_column("stage", width=8)
    table.add_column(f"{snapshot.elapsed:4.1f}s", ratio=1)
    table.add_column("done", width=8, justify="right")
    table.add_column("failed", width=6, justify="right")
    for job in snapshot.jobs:
        status = Text(job.status, style=STATUS_STYLE.get(job.status, ""))
        for n, stage in enumerate(job.stages):
            table.add_row(
                job.name if n == 0 else "",
                str(job.run) if n == 0 else "",
                status if n == 0 else "",
                stage.key,
                _bar(job, stage),
                f"{stage.processed}/{stage.total}",
                Text(str(stage.failed), style="red") if stage.failed else "",
            )
    return table


def _bar(job: JobView, stage: StageView) -> RenderableType:
    if stage.status == "waiting":
        return Text("behind the barrier" if stage.key == "results" else "waiting", style="dim")
    style = "green" if stage.status == "done" else "cyan"
    if job.status in {"FAILURE", "REVOKED", "CANCELING"}:
        style = "red" if job.status == "FAILURE" else "yellow"
    return ProgressBar(
        total=max(stage.total, 1),
        completed=stage.processed,
        complete_style=style,
        finished_style=style,
    )


def _workers_table(snapshot: Snapshot) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), width=WIDTH, show_header=False)
    table.add_column(width=10)
    table.add_column(width=8, justify="right", style="dim")
    table.add_column(width=10)
    table.add_column(ratio=1, no_wrap=True)
    for worker in snapshot.workers:
        style = {"running": "green", "suspended": "bold yellow", "killed": "bold red"}
        table.add_row(
            worker.name,
            str(worker.pid),
            Text(worker.state, style=style.get(worker.state, "dim")),
            worker.doing,
        )
    return table
