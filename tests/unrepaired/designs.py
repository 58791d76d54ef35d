"""One small interface to two designs: pyjobs, and the one that it replaces.

A test written against it runs on both. On pyjobs it must pass, on the unrepaired design fail.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.sessions import Session

    NewSession = Callable[[], Session]


class Hand(Protocol):
    """Somebody at work on a job: reads it, later saves, then commits."""

    session: Session

    def read(self) -> None:
        """Begin a transaction and look at the job as it is now."""

    def save(self) -> bool:
        """Write; whether it was accepted."""

    def commit(self) -> None:
        """End the transaction: commit what was accepted, roll back what was not."""


class Design(Protocol):
    """Jobs of numbered batches of one item each."""

    def job(self, batches: int) -> int:
        """A job whose batches are all out with workers."""

    def worker(self, job: int) -> Hand:
        """Who has the next batch of the job, and saves its result."""

    def again(self, worker: Hand) -> Hand:
        """Who posts that worker's result once more, as after a lost acknowledgement."""

    def canceller(self, job: int) -> Hand:
        """Who cancels the job, at once."""

    def status(self, job: int) -> str:
        """As it is stored."""

    def shown(self, job: int) -> str:
        """As the progress document says it."""

    def finished_at(self, job: int) -> Any:
        """When it ended; None while it has not."""

    def processed(self, job: int) -> int:
        """How many items are done."""


class Pyjobs:
    def __init__(self, new_session: NewSession) -> None:
        self._new = new_session
        self._look = new_session()
        self._out: dict[int, list[dict[str, Any]]] = {}

    def job(self, batches: int) -> int:
        job = self._look.enqueue(items=batches)
        self._out[job] = self._look.claim(job, batches)
        return job

    def worker(self, job: int) -> Hand:
        return _Call(self._new(), job, batch=self._out[job].pop(0))

    def again(self, worker: Hand) -> Hand:
        assert isinstance(worker, _Call)
        return _Call(self._new(), worker.job, batch=worker.batch)

    def canceller(self, job: int) -> Hand:
        return _Call(self._new(), job)

    def status(self, job: int) -> str:
        return self._look.status(job)

    def shown(self, job: int) -> str:
        shown: str = self._look.progress(job)["summary"]["status"]
        return shown

    def finished_at(self, job: int) -> Any:
        return self._look.value("select finished_at from pyjobs.job where id = %s", job)

    def processed(self, job: int) -> int:
        (stage,) = self._look.progress(job)["stages"]
        processed: int = stage["processed"]
        return processed


class _Call:
    def __init__(self, session: Session, job: int, batch: dict[str, Any] | None = None) -> None:
        self.session = session
        self.job = job
        self.batch = batch
        self._accepted = False

    def read(self) -> None:
        self.session.begin()
        self.session.progress(self.job)

    def save(self) -> bool:
        try:
            if self.batch is None:
                self.session.cancel(self.job, "0")
            else:
                self.session.record(self.batch)
        except psycopg.Error as error:
            if error.sqlstate in ("PJ001", "PJ002"):  # a stale lease, or already recorded
                return False
            raise
        self._accepted = True
        return True

    def commit(self) -> None:
        if self._accepted:
            self.session.commit()
        else:
            self.session.rollback()


class Unrepaired:
    def __init__(self, new_session: NewSession) -> None:
        self._new = new_session
        self._look = new_session()
        self._look.conn.execute((Path(__file__).parent / "design.sql").read_bytes())

    def job(self, batches: int) -> int:
        progress = {"status": "STARTED", "total": batches, "processed": 0}
        job: int = self._look.value(
            "insert into unrepaired.job (status, progress) values ('STARTED', %s) returning id",
            json.dumps(progress),
        )
        return job

    def worker(self, job: int) -> Hand:
        return _Copy(self._new(), job, cancels=False)

    def again(self, worker: Hand) -> Hand:
        assert isinstance(worker, _Copy)
        return _Copy(self._new(), worker.job, cancels=False)

    def canceller(self, job: int) -> Hand:
        return _Copy(self._new(), job, cancels=True)

    def status(self, job: int) -> str:
        status: str = self._stored(job)["status"]
        return status

    def shown(self, job: int) -> str:
        shown: str = self._stored(job)["progress"]["status"]
        return shown

    def finished_at(self, job: int) -> Any:
        return self._stored(job)["finished_at"]

    def processed(self, job: int) -> int:
        processed: int = self._stored(job)["progress"]["processed"]
        return processed

    def _stored(self, job: int) -> dict[str, Any]:
        return self._look.row("select * from unrepaired.load(%s)", job)


class _Copy:
    """An object-relational mapper's object: a copy of the row, saved whole."""

    def __init__(self, session: Session, job: int, *, cancels: bool) -> None:
        self.session = session
        self.job = job
        self._cancels = cancels
        self._copy: dict[str, Any] = {}

    def read(self) -> None:
        self.session.begin()
        self._copy = self.session.row("select * from unrepaired.load(%s)", self.job)

    def save(self) -> bool:
        copy, progress = self._copy, self._copy["progress"]
        if self._cancels:
            # The document is left to whoever updates progress.
            copy["status"] = "REVOKED"
        else:
            progress["processed"] += 1
            if progress["processed"] >= progress["total"]:
                copy["status"] = progress["status"] = "SUCCESS"
        if copy["status"] in ("SUCCESS", "REVOKED"):
            copy["finished_at"] = self.session.value("select clock_timestamp()")
        self.session.do(
            "select unrepaired.save(%s, %s, %s, %s)",
            self.job,
            copy["status"],
            copy["finished_at"],
            json.dumps(progress),
        )
        return True

    def commit(self) -> None:
        self.session.commit()
