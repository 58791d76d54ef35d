"""Job processing inside PostgreSQL: typed access to its functions, and workers."""

from __future__ import annotations

from pyjobs._async.client import AsyncClient
from pyjobs._async.lazy import AsyncLazyConnection
from pyjobs._async.worker import AsyncWorker
from pyjobs._batch import Batch
from pyjobs._sync.client import Client
from pyjobs._sync.lazy import LazyConnection
from pyjobs._sync.worker import Worker
from pyjobs.errors import (
    AlreadyRecorded,
    Error,
    IllegalTransition,
    InvalidArgument,
    NotAccepted,
    NotFound,
    StaleLease,
    WrongIsolation,
)
from pyjobs.models import (
    BatchOutcome,
    Claim,
    Discrepancy,
    Explanation,
    Finalized,
    HistoryEntry,
    Job,
    JobError,
    JobStatus,
    LeaseState,
    Outcome,
    Progress,
    QueueStat,
    Reaped,
    RecordedAndClaimed,
    RecordResult,
    StageProgress,
    Unreadable,
    WorkerStat,
)

__version__ = "0.1.0"

__all__ = [
    "AlreadyRecorded",
    "AsyncClient",
    "AsyncLazyConnection",
    "AsyncWorker",
    "Batch",
    "BatchOutcome",
    "Claim",
    "Client",
    "Discrepancy",
    "Error",
    "Explanation",
    "Finalized",
    "HistoryEntry",
    "IllegalTransition",
    "InvalidArgument",
    "Job",
    "JobError",
    "JobStatus",
    "LazyConnection",
    "LeaseState",
    "NotAccepted",
    "NotFound",
    "Outcome",
    "Progress",
    "QueueStat",
    "Reaped",
    "RecordResult",
    "RecordedAndClaimed",
    "StageProgress",
    "StaleLease",
    "Unreadable",
    "Worker",
    "WorkerStat",
    "WrongIsolation",
    "__version__",
]
