"""What a handler is given: a batch's items, and where to put what became of them."""

from __future__ import annotations

import threading
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pyjobs.models import Claim, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyjobs.models import JsonValue

__all__ = ["Batch"]


class Batch:
    """One leased batch. What it is told is recorded when the handler returns.

    `items` are the batch's items, `params` the job's. Safe to use from several threads.
    """

    __slots__ = ("_cancelled", "_claim", "_counters", "_emitted", "_failed", "_lock", "key", "row")

    def __init__(self, claim: Claim) -> None:
        self._start(tuple(getattr(claim, field.name) for field in fields(claim)))

    @classmethod
    def of(cls, row: Sequence[Any]) -> Batch:
        """Make one of the values of a Claim's fields.

        To make a Claim takes longer than to work a small job, and hardly any handler asks for it.
        """
        batch = cls.__new__(cls)
        batch._start(row)
        return batch

    def _start(self, row: Sequence[Any]) -> None:
        self.row = row
        self.key: tuple[int, int] = (row[2], row[3])
        self._claim: Claim | None = None
        self._lock = threading.Lock()
        self._failed: dict[int, str] | None = None
        self._counters: dict[str, int] | None = None
        self._emitted: list[JsonValue] | None = None
        self._cancelled: str | None = None

    def __repr__(self) -> str:
        return (
            f"<Batch {self.batch_id} of job {self.job_id}, stage {self.stage},"
            f" {len(self.items)} items, attempt {self.attempt}>"
        )

    @property
    def claim(self) -> Claim:
        """What the claim returned."""
        if self._claim is None:
            self._claim = Claim(*self.row)
        return self._claim

    @property
    def items(self) -> list[Any]:
        """The batch's items, in order."""
        return self.row[8]  # type: ignore[no-any-return]

    @property
    def params(self) -> Any:
        """The job's params."""
        return self.row[7]

    @property
    def job_id(self) -> int:
        """The job's id."""
        return self.row[0]  # type: ignore[no-any-return]

    @property
    def run(self) -> int:
        """The job's run, from 1."""
        return self.row[1]  # type: ignore[no-any-return]

    @property
    def batch_id(self) -> int:
        """The batch's id."""
        return self.row[2]  # type: ignore[no-any-return]

    @property
    def lease_epoch(self) -> int:
        """The epoch of the lease under which the batch is worked."""
        return self.row[3]  # type: ignore[no-any-return]

    @property
    def attempt(self) -> int:
        """Which attempt at this batch it is, from 1."""
        return self.row[4]  # type: ignore[no-any-return]

    @property
    def queue(self) -> str:
        """The job's queue."""
        return self.row[5]  # type: ignore[no-any-return]

    @property
    def stage(self) -> str:
        """The name of the stage that the batch belongs to."""
        return self.row[6]  # type: ignore[no-any-return]

    def fail(self, index: int, error: str | BaseException) -> None:
        """Say that the item at `index` (from 0) failed; the others succeed.

        A failed item is a result: it is not tried again. Said twice, the later error stays.
        """
        text = plain_text(error)
        with self._lock:
            if self._failed is None:
                self._failed = {}
            self._failed[index] = text

    def count(self, **counters: int) -> None:
        """Add to the stage's counters: `batch.count(detections=3)`."""
        with self._lock:
            if self._counters is None:
                self._counters = {}
            for name, number in counters.items():
                self._counters[name] = self._counters.get(name, 0) + number

    def emit(self, items: Iterable[JsonValue]) -> None:
        """Hand items to the next stage."""
        more = list(items)
        with self._lock:
            if self._emitted is None:
                self._emitted = more
            else:
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
        row = self.row
        for given in (row[8], row[7]):
            if isinstance(given, Unreadable):
                return given.reason
        return None

    @property
    def result(self) -> dict[str, Any]:
        """The arguments of `record_batch`; what is empty is left to SQL's default."""
        with self._lock:
            return {
                "failed": [{"index": i, "error": e} for i, e in self._failed.items()]
                if self._failed
                else None,
                "counters": dict(self._counters) if self._counters else None,
                "next_items": list(self._emitted) if self._emitted else None,
            }

    @property
    def emits(self) -> bool:
        """Whether there are items for the next stage."""
        return bool(self._emitted)

    @property
    def job_cancelled(self) -> bool:
        """Whether it is the job's cancel that makes the result unwanted."""
        return self._cancelled in {"CANCELING", "REVOKED"}

    def cancel(self, reason: str) -> None:
        """Tell the handler that its result is no longer wanted."""
        self._cancelled = reason

    def afresh(self) -> Batch:
        """The same lease without any result, for another attempt at it."""
        batch = Batch.of(self.row)
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
