"""What several verbs say: a job's status, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from pyjobs.cli import _output
from pyjobs.cli._app import CommandError, Session, Status, exit_with
from pyjobs.models import JobStatus

if TYPE_CHECKING:
    from collections.abc import Sequence


def tell_status(job_id: int, status: str) -> None:
    """Say what a job's status is now."""
    _output.answer({"job_id": job_id, "status": status}, f"job {job_id} is {status}")


def tell_end(
    session: Session,
    job_id: int,
    timeout: float | None,
    good: Sequence[JobStatus] = (JobStatus.SUCCESS,),
) -> None:
    """Wait until a job ends, say how, and exit 1 where that is none of the good ends."""
    try:
        progress = session.client.wait(job_id, timeout)
    except TimeoutError as error:
        raise CommandError(str(error), Status.TIME_OUT) from error
    failed = sum(stage.failed for stage in progress.stages)
    text = Text.assemble(f"job {job_id} is ", _output.cell(progress.status))
    if failed:
        text.append(f", {failed} failed items; see: pyjobs status {job_id}")
    _output.answer({"job_id": job_id, **progress.document}, text)
    exit_with(Status.DONE if progress.status in good else Status.REFUSED)
