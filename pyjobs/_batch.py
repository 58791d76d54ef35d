"""What a handler is given: a batch's items, and where to put what became of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pyjobs.models import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyjobs.models import Claim, JsonValue

__all__ = ["Batch"]


class Batch:
    """One leased batch. What it is told is recorded when the handler returns.

    `items` are the batch's items, `params` the job's. Safe to use from several threads.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._lock = threading.Lock()
        self._failed: dict[int, str] = {}
        self._counters: dict[str, int] = {}
        self._emitted: list[JsonValue] = []
        self._cancelled: str | None = None

    def __repr__(self) -> str:
        return (
            f"<Batch {self.batch_id} of job {self.job_id}, stage {self.stage},"
            f" {len(self.items)} items, attempt {self.attempt}>"
        )

    @property
    def items(self) -> list[Any]:
        """The batch's items, in order."""
        return self.claim.items

    @property
    def params(self) -> Any:
        """The job's params."""
        return self.claim.params

    @property
    def job_id(self) -> int:
        """The job's id."""
        return self.claim.job_id

    @property
    def run(self) -> int:
        """The job's run, from 1."""
        return self.claim.run

    @property
    def batch_id(self) -> int:
        """The batch's id."""
        return self.claim.batch_id

    @property
    def lease_epoch(self) -> int:
        """The epoch of the lease under which the batch is worked."""
        return self.claim.lease_epoch

    @property
    def attempt(self) -> int:
        """Which attempt at this batch it is, from 1."""
        return self.claim.attempt

    @property
    def queue(self) -> str:
        """The job's queue."""
        return self.claim.queue

    @property
    def stage(self) -> str:
        """The name of the stage that the batch belongs to."""
        return self.claim.stage

    def fail(self, index: int, error: str | BaseException) -> None:
        """Say that the item at `index` (from 0) failed; the others succeed.

        A failed item is a result: it is not tried again. Said twice, the later error stays.
        """
        with self._lock:
            self._failed[index] = plain_text(error)

    def count(self, **counters: int) -> None:
        """Add to the stage's counters: `batch.count(detections=3)`."""
        with self._lock:
            for name, number in counters.items():
                self._counters[name] = self._counters.get(name, 0) + number

    def emit(self, items: Iterable[JsonValue]) -> None:
        """Hand items to the next stage."""
        more = list(items)
        with self._lock:
            self._emitted.extend(more)

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer wanted.

        The job is being cancelled, the lease is lost, or the worker's time limit is exceeded. A
        long handler looks now and then, and stops: by returning, what it has done is recorded
        if that is still allowed; by raising, the batch is given back.
        """
        return self._cancelled is not None

    # For the worker

    @property
    def unreadable(self) -> str | None:
        """Why the handler cannot be given its items or params; None where it can."""
        for given in (self.items, self.params):
            if isinstance(given, Unreadable):
                return given.reason
        return None

    @property
    def result(self) -> dict[str, Any]:
        """The arguments of `record_batch`; what is empty is left to SQL's default."""
        with self._lock:
            return {
                "failed": [{"index": i, "error": e} for i, e in self._failed.items()] or None,
                "counters": dict(self._counters) or None,
                "next_items": list(self._emitted) or None,
            }

    @property
    def job_cancelled(self) -> bool:
        """Whether it is the job's cancel that makes the result unwanted."""
        return self._cancelled in {"CANCELING", "REVOKED"}

    def cancel(self, reason: str) -> None:
        """Tell the handler that its result is no longer wanted."""
        self._cancelled = reason

    def afresh(self) -> Batch:
        """The same lease without any result, for another attempt at it."""
        batch = Batch(self.claim)
        batch._cancelled = self._cancelled
        return batch


def plain_text(error: str | BaseException, limit: int = 2000) -> str:
    """An error as a text that the database takes: no NUL, no lone surrogates, not too long."""
    if isinstance(error, str):
        text = error
    else:
        try:
            text = f"{type(error).__name__}: {error}"
        except Exception as trouble:  # noqa: BLE001 - it is somebody's __str__
            text = f"{type(error).__name__}, and its text raises {type(trouble).__name__}"
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
