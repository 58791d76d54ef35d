"""What the SQL functions return, as frozen dataclasses, and the statuses as an enum.

Every row is read by the names of its columns. Columns that a class does not know are left out, so
that this version also runs on a newer schema.
"""
# ruff: noqa: TC003 - the annotations are part of the interface, and read at run time

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from operator import itemgetter
from typing import Any, Self, cast

__all__ = [
    "BatchOutcome",
    "Claim",
    "Discrepancy",
    "Explanation",
    "Finalized",
    "HistoryEntry",
    "Job",
    "JobError",
    "JobStatus",
    "JsonValue",
    "LeaseState",
    "Outcome",
    "Progress",
    "QueueStat",
    "Reaped",
    "RecordResult",
    "RecordedAndClaimed",
    "StageProgress",
    "Unreadable",
    "WorkerStat",
]

# Whatever json.dumps takes: what a caller may put in is not ours to say.
JsonValue = Any


class JobStatus(StrEnum):
    """The status of a job. `final`: nothing changes it within its run."""

    CREATED = "CREATED"
    PENDING = "PENDING"
    STARTED = "STARTED"
    RETRY = "RETRY"
    CANCELING = "CANCELING"
    UNKNOWN = "UNKNOWN"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"

    @property
    def final(self) -> bool:
        """Whether the job's run has ended. A test holds this against the database's table."""
        return self in {JobStatus.SUCCESS, JobStatus.FAILURE, JobStatus.REVOKED}


class Outcome(StrEnum):
    """What became of one batch in `record_batches`."""

    RECORDED = "recorded"
    ALREADY = "already"
    STALE = "stale"


# An enum's members by their values: a tenth of what calling the enum takes.
_STATUSES: dict[str | None, JobStatus] = {status.value: status for status in JobStatus}
_OUTCOMES: dict[str, Outcome] = {outcome.value: outcome for outcome in Outcome}
# How a column of this annotation is made from what psycopg loads; all others are taken as they are.
_FROM_COLUMN: dict[str, Callable[[Any], Any]] = {
    "JobStatus": lambda value: _STATUSES.get(value) or JobStatus(value),
    "JobStatus | None": lambda value: None if value is None else JobStatus(value),
    "Outcome": lambda value: _OUTCOMES.get(value) or Outcome(value),
}


@cache
def _conversions(cls: Any) -> dict[str, Callable[[Any], Any] | None]:
    return {f.name: _FROM_COLUMN.get(str(f.type)) for f in dataclasses.fields(cls)}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a result."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Make it from a row by column names; columns that it does not know are left out."""
        values = {}
        for name, convert in _conversions(cast("Any", cls)).items():
            if name in row:
                values[name] = row[name] if convert is None else convert(row[name])
        return cls(**values)


def rows_of(cls: Any) -> Callable[[Any], Callable[[Sequence[Any]], Any]]:
    """Make a psycopg row factory of a class of rows: `from_row`, at a third of its price."""

    def factory(cursor: Any) -> Callable[[Sequence[Any]], Any]:
        return _maker(cls, tuple(column.name for column in cursor.description or ()))

    return factory


def tuples_of(cls: Any) -> Callable[[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
    """Make a psycopg row factory of the values of a class's fields, in their order."""
    fields = tuple(_conversions(cls))

    def factory(cursor: Any) -> Callable[[Sequence[Any]], Sequence[Any]]:
        names = tuple(column.name for column in cursor.description or ())
        return tuple if names == fields else itemgetter(*map(names.index, fields))

    return factory


@cache
def _maker(cls: Any, names: tuple[str, ...]) -> Callable[[Sequence[Any]], Any]:
    conversions = _conversions(cls)
    known = len(conversions)
    if names[:known] != tuple(conversions):
        return lambda values: cls.from_row(dict(zip(names, values, strict=True)))
    converted = [(n, convert) for n, convert in enumerate(conversions.values()) if convert]
    if not converted and len(names) == known:
        return lambda values: cls(*values)

    def make(values: Sequence[Any]) -> Any:
        row = list(values[:known])
        for n, convert in converted:
            row[n] = convert(row[n])
        return cls(*row)

    return make


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for JSON that is right, and that Python does not read; `reason` says why.

    PostgreSQL takes numbers of 131,072 digits, and documents thousands of levels deep. A worker
    gives such a batch back with this as its error; the other batches of the claim are worked.
    """

    reason: str


_raw_decode = json.JSONDecoder().raw_decode


def read_json(text: str | bytes) -> Any:
    """As `json.loads`, but what it does not read becomes an `Unreadable`."""
    try:
        # As the server sends it, always in UTF-8 and without white space around: what `json.loads`
        # does about either takes as long as to read a short document.
        text = text if isinstance(text, str) else str(text, "utf-8")
        value, end = _raw_decode(text)
        return value if end == len(text) else json.loads(text)
    except (RecursionError, ValueError) as exc:
        return Unreadable(f"Python cannot read this JSON: {exc}")


@dataclass(frozen=True, slots=True)
class Claim(Row):
    """One leased batch. Whoever has `batch_id` and `lease_epoch` may record it.

    `params` and `items` may be `Unreadable`.
    """

    job_id: int
    run: int
    batch_id: int
    lease_epoch: int
    attempt: int
    queue: str
    stage: str
    params: JsonValue
    items: list[JsonValue]
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True)
class RecordResult(Row):
    """What recording a batch led to, as of the commit of the same transaction."""

    job_id: int
    job_status: JobStatus
    stage_done: bool
    job_done: bool


@dataclass(frozen=True, slots=True)
class RecordedAndClaimed:
    """The job's status after the batch was recorded, and the batches claimed with it."""

    recorded_status: JobStatus
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class BatchOutcome(Row):
    """What became of one of the batches of `record_batches`."""

    batch_id: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LeaseState(Row):
    """Until when the lease lasts now, and the job's status: CANCELING means stop."""

    lease_expires_at: datetime
    job_status: JobStatus


@dataclass(frozen=True, slots=True)
class Finalized(Row):
    """Whether this call ended the job, and the status that it has now."""

    transitioned: bool
    status: JobStatus


@dataclass(frozen=True, slots=True)
class Reaped(Row):
    """One thing that the reaper did, or would do in a dry run."""

    action: str
    job_id: int | None
    batch_id: int | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class StageProgress(Row):
    """A stage of a job: `status` is waiting, running or done; `progress` from 0 to 1.

    The other numbers are items. processed = succeeded + failed; remaining = total - processed.
    `carried` is there where the run repeats only what had failed: what earlier runs had done of the
    stage, `{"succeeded", "counters"}`, which is not in the other numbers.
    """

    key: str
    status: str
    progress: float
    total: int
    pending: int
    leased: int
    processed: int
    failed: int
    remaining: int
    counters: dict[str, int]
    carried: dict[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class JobError(Row):
    """An item that failed, and why."""

    stage: str
    item: JsonValue
    error: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress document of a job.

    `progress` is from 0 to 1, the mean of the stages'. `rate` is items a second, `seconds_left`
    what remains at that rate; None where unknown. `errors` are the first ten of this run and
    `more_errors` how many more there are. `document` is the whole as the database gave it.
    """

    status: JobStatus
    progress: float
    rate: float | None
    seconds_left: float | None
    stages: tuple[StageProgress, ...]
    errors: tuple[JobError, ...]
    more_errors: int
    document: Mapping[str, JsonValue] = field(repr=False, compare=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Make it from what `job_progress` returns."""
        summary = document["summary"]
        return cls(
            status=JobStatus(summary["status"]),
            progress=summary["progress"],
            rate=summary.get("rate"),
            seconds_left=summary.get("seconds_left"),
            stages=tuple(StageProgress.from_row(stage) for stage in document["stages"]),
            errors=tuple(JobError.from_row(error) for error in document["errors"]),
            more_errors=document.get("more_errors", 0),
            document=document,
        )


@dataclass(frozen=True, slots=True)
class Explanation(Row):
    """One finding about a job: what is so, what shows it, what to do."""

    finding: str
    evidence: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Discrepancy(Row):
    """A stored number that is not what the ledger gives."""

    job_id: int
    stage: str | None
    what: str
    recorded: str | None
    recomputed: str | None


@dataclass(frozen=True, slots=True)
class HistoryEntry(Row):
    """One change of a job's status: when, in which run, by whom and why."""

    at: datetime
    run: int
    from_status: JobStatus | None
    to_status: JobStatus
    session_role: str
    by: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class QueueStat(Row):
    """A queue: its jobs, its batches, and how many workers asked for it lately."""

    queue: str
    paused: bool
    waiting_jobs: int
    running_jobs: int
    pending_batches: int
    leased_batches: int
    oldest_waiting: datetime | None
    workers: int


@dataclass(frozen=True, slots=True)
class WorkerStat(Row):
    """A worker that asked for work lately."""

    worker: str
    queues: list[str]
    last_seen: datetime
    leased_batches: int


@dataclass(frozen=True, slots=True)
class Job(Row):
    """A job as the view `pyjobs.job` shows it. Times are None until they are reached."""

    id: int
    queue: str
    name: str | None
    status: JobStatus
    run: int
    priority: int
    params: JsonValue
    batch_size: int
    max_attempts: int
    failure_threshold: Decimal
    dedupe_key: str | None
    run_at: datetime
    sealed: bool
    paused: bool
    queue_paused: bool
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None
    finished_by: str | None
    reason: str | None
    cancel_deadline: datetime | None
    stages: list[str]
