"""The SQL functions as plain calls, for tests that need jobs in many states."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from tests.support.rules import FINAL

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg

Row = dict[str, Any]

_FOR_TESTS = Path(__file__).parents[2] / "sql" / "testing"


class Calls:
    """Calls on one session of the owner."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn

    def rows(self, query: str, *arguments: Any) -> list[Row]:
        """What a query returns."""
        with self.conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode(), arguments).fetchall()

    def row(self, query: str, *arguments: Any) -> Row:
        """The one row that a query returns."""
        (row,) = self.rows(query, *arguments)
        return row

    def value(self, query: str, *arguments: Any) -> Any:
        """The one value that a query returns."""
        (value,) = self.row(query, *arguments).values()
        return value

    def do(self, query: str, *arguments: Any) -> None:
        """Run something that returns nothing of interest."""
        self.conn.execute(query.encode(), arguments)

    def enqueue(self, queue: str = "default", items: Any = None, **options: Any) -> int:
        """A job's id. ``items`` may be a number: so many numbered items."""
        if isinstance(items, int):
            items = list(range(items))
        given = {"queue": queue, "items": _json(items), **options}
        if "params" in given:
            given["params"] = _json(given["params"])
        for name, value in given.items():
            if isinstance(value, float):
                given[name] = decimal.Decimal(str(value))
        names = ", ".join(f"{name} => %s" for name in given)
        job_id: int = self.value(f"select pyjobs.enqueue_job({names})", *given.values())
        return job_id

    def claim(
        self, job_id: int, batches: int = 1, *, worker: str = "w", lease: str = "60 seconds"
    ) -> list[Row]:
        """Batches of this job."""
        return self.rows(
            "select * from pyjobs.claim_next_batch(%s, %s, %s, %s)", job_id, worker, batches, lease
        )

    def ask(self, worker: str, *queues: str) -> list[Row]:
        """What a worker that takes any job is given."""
        return self.rows("select * from pyjobs.claim_next_job(%s, %s)", worker, list(queues))

    def record(
        self, batch: Row, failed: Any = (), counters: Any = None, next_items: Any = None
    ) -> Row:
        """Record a claimed batch. ``failed`` lists indexes, each of which fails with an error."""
        listed = [{"index": index, "error": f"error {index}"} for index in failed]
        return self.row(
            "select * from pyjobs.record_batch(%s, %s, %s, %s, %s)",
            batch["batch_id"],
            batch["lease_epoch"],
            json.dumps(listed),
            json.dumps(counters or {}),
            _json(next_items),
        )

    def finish(self, job_id: int, **result: Any) -> None:
        """Claim and record all that a job has."""
        while batches := self.claim(job_id, 100):
            for batch in batches:
                self.record(batch, **result)

    def status(self, job_id: int) -> str:
        """As people see it."""
        status: str = self.value("select status from pyjobs.job where id = %s", job_id)
        return status

    def progress(self, job_id: int) -> Any:
        """The progress document."""
        return self.value("select pyjobs.job_progress(%s)", job_id)

    def explain(self, job_id: int) -> list[Row]:
        """The findings about a job."""
        return self.rows("select * from pyjobs.explain_job(%s)", job_id)

    def findings(self, job_id: int) -> list[str]:
        """The names of the findings about a job."""
        return [row["finding"] for row in self.explain(job_id)]

    def audit(self, job_id: int | None = None) -> list[Row]:
        """The disagreements about a job, or about all."""
        return self.rows("select * from pyjobs.audit_job(%s)", job_id)

    def history(self, job_id: int) -> list[Row]:
        """A job's transitions."""
        return self.rows("select * from pyjobs.job_history(%s)", job_id)

    def steps(self, job_id: int) -> list[tuple[str | None, str]]:
        """A job's transitions, as pairs."""
        return [(row["from_status"], row["to_status"]) for row in self.history(job_id)]

    def settable_clock(self) -> None:
        """From here on the clock can be put ahead."""
        self.conn.execute((_FOR_TESTS / "settable_clock.sql").read_bytes())

    def mark_every_claim(self) -> None:
        """From here on every claim moves the low-water mark."""
        self.conn.execute((_FOR_TESTS / "mark_every_claim.sql").read_bytes())

    def pass_time(self, interval: str) -> None:
        """Put the clock ahead; it must be settable."""
        self.do("update pyjobs_internal.test_clock set ahead = ahead + %s::interval", interval)


def let_go(calls: Calls, queues: Iterable[str]) -> None:
    """Release, resume, seal and resolve whatever is not final, so that it can be worked."""
    for queue in queues:
        calls.do("select pyjobs.resume_queue(%s)", queue)
    for job in calls.rows("select id, status, paused, sealed from pyjobs.job"):
        if job["status"] in FINAL:
            continue
        if job["status"] == "UNKNOWN":
            calls.do("select pyjobs.resolve_job(%s, 'RETRY', 'calm')", job["id"])
        for wanted, call in (
            (job["status"] == "CREATED", "release_job"),
            (job["paused"], "resume_job"),
            (not job["sealed"], "seal_job"),
        ):
            if wanted and calls.status(job["id"]) not in FINAL:
                calls.do(f"select pyjobs.{call}(%s)", job["id"])


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)
