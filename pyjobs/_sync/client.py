# Made from pyjobs/_async/client.py by tools/generate.py: edit that one, and run it.
"""The client: one method for each public SQL function."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolTimeout
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pyjobs._calls import CALLS, ONE_JOB, prepare_call, prepare_listing
from pyjobs._pooling import has_word, may_repeat, seconds, with_defaults
from pyjobs.errors import NotFound, translated
from pyjobs.models import (
    BatchOutcome,
    Claim,
    Discrepancy,
    Explanation,
    Finalized,
    HistoryEntry,
    Job,
    JobStatus,
    JsonValue,
    LeaseState,
    Progress,
    QueueStat,
    Reaped,
    RecordedAndClaimed,
    RecordResult,
    Row,
    WorkerStat,
    read_json,
    rows_of,
    tuples_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta
    from decimal import Decimal
    from types import TracebackType

__all__ = ["Client"]

R = TypeVar("R", bound=Row)

# How often a call is tried that the server rolled back, or whose connection was lost.
ATTEMPTS = 5
# How long the pool tries by itself to reach a server that is away, in seconds; also how soon it is
# asked again, which is what a failover costs beyond the time that the servers take.
RECONNECT = 0.25


class Client:
    """The functions of schema `pyjobs` as methods, with typed results.

    Every method has the name and the arguments of its SQL function. An optional argument that is
    None is not sent, so that the default is SQL's; a JSON null is `psycopg.types.json.Jsonb(None)`.
    JSON is whatever `json.dumps` takes, an interval a timedelta, a time a datetime with a zone.

    With `conn=` a call runs in the caller's own transaction, and is neither committed nor repeated.
    Without, it is a transaction of its own; if the server rolls that back (deadlock, serialization)
    it is tried up to five times. After a lost connection only what does no harm twice is repeated:
    reading, claiming, and what a lease's epoch fences. A `record_batch` that had been committed
    when its answer was lost then raises `AlreadyRecorded`: the batch counts once, and it is yours.

    Raises `pyjobs.Error`, by SQLSTATE, for what a function refuses, and psycopg's own errors for
    the rest.
    """

    def __init__(
        self,
        conninfo: str | ConnectionPool[Any] = "",
        *,
        max_size: int = 10,
        timeout: float = 30.0,
        prepare_threshold: int | None = None,
    ) -> None:
        """Make a client; it connects when it is first used.

        conninfo           a connection string or URL, or a psycopg pool, which stays the caller's:
                           it must be open, and is not closed with the client
        max_size           how many connections at most
        timeout            seconds to wait for a connection
        prepare_threshold  prepare a statement on the server when it has run that often. None never
                           does, which is right behind every transaction-pooling proxy. Connected
                           directly, 5 saves a tenth or more of a short call's time
        """
        self._owns_pool = isinstance(conninfo, str)
        self._tried = not self._owns_pool
        if isinstance(conninfo, str):
            self.pool: ConnectionPool[Any] = ConnectionPool(
                with_defaults(conninfo),
                kwargs={"autocommit": True, "prepare_threshold": prepare_threshold},
                min_size=0,
                max_size=max_size,
                timeout=timeout,
                reconnect_timeout=RECONNECT,
                open=False,
                name="pyjobs",
            )
        else:
            self.pool = conninfo

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client's own connections. A pool that it was given stays open."""
        if self._owns_pool:
            self.pool.close()

    # Connections

    def reserve(self, connections: int) -> None:
        """Let the client's own pool have that many connections, if it may not already."""
        self._open()
        if self._owns_pool and self.pool.max_size < connections:
            self.pool.resize(min_size=0, max_size=connections)

    def _open(self) -> None:
        """Open the pool of one's own; say at once if the server cannot be reached, and why."""
        if not self._tried:
            (Connection.connect(self._conninfo())).close()
            self._tried = True
        if self._owns_pool and self.pool.closed:
            self.pool.open()

    def _conninfo(self) -> str:
        conninfo = self.pool.conninfo
        assert isinstance(conninfo, str)  # noqa: S101 - it is the one made in __init__
        return conninfo

    def _take(self) -> Connection[Any]:
        conn: Connection[Any]
        if not self._owns_pool:
            conn = self.pool.getconn()
            return conn
        # The pool tries to connect for whoever comes to ask, and then ever more rarely: so ask
        # again and again, to be there soon when a server that was away comes back.
        deadline = monotonic() + self.pool.timeout
        while (left := deadline - monotonic()) > 0:
            with suppress(PoolTimeout):
                conn = self.pool.getconn(timeout=min(left, RECONNECT))
                return conn
        message = f"no connection within {self.pool.timeout:g} s"
        try:
            (Connection.connect(self._conninfo())).close()
        except psycopg.OperationalError as reason:
            raise PoolTimeout(f"{message}: {reason}") from reason
        raise PoolTimeout(f"{message}: all {self.pool.max_size} of the client are in use")

    def _take_alive(self) -> Connection[Any]:
        conn = self._take()
        try:
            if has_word(conn.fileno()):
                self.pool.check_connection(conn)
        except BaseException as exc:
            self.pool.putconn(conn)
            if not isinstance(exc, psycopg.Error):
                raise
        else:
            return conn
        # The server was restarted: away with all connections that were idle like this one.
        self.pool.check()
        return self._take()

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """A connection of the pool that was alive a moment ago, given back at the end."""
        self._open()
        conn = self._take_alive()
        try:
            with conn:
                yield conn
        finally:
            self.pool.putconn(conn)

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """A connection in a transaction, for several calls with `conn=`; committed at the end."""
        with self.connection() as conn, conn.transaction():
            yield conn

    # Calls

    def _rows(
        self, call: str, conn: Connection[Any] | None, /, **arguments: Any
    ) -> list[dict[str, Any]]:
        statement, values = prepare_call(call, arguments)
        return self._query(statement, values, conn, repeatable=CALLS[call].repeatable)

    def _list(
        self, cls: type[R], call: str, conn: Connection[Any] | None, /, **arguments: Any
    ) -> list[R]:
        statement, values = prepare_call(call, arguments)
        repeatable = CALLS[call].repeatable
        return self._query(statement, values, conn, repeatable=repeatable, rows=rows_of(cls))

    def tuples(self, cls: type[Row], call: str, /, **arguments: Any) -> list[Sequence[Any]]:
        """For the worker: the rows of a call as the values of the class's fields."""
        statement, values = prepare_call(call, arguments)
        repeatable = CALLS[call].repeatable
        return self._query(statement, values, None, repeatable=repeatable, rows=tuples_of(cls))

    def _one(self, cls: type[R], call: str, conn: Connection[Any] | None, /, **arguments: Any) -> R:
        (one,) = self._list(cls, call, conn, **arguments)
        return one

    def _row(self, call: str, conn: Connection[Any] | None, /, **arguments: Any) -> dict[str, Any]:
        (row,) = self._rows(call, conn, **arguments)
        return row

    def _value(self, call: str, conn: Connection[Any] | None, /, **arguments: Any) -> Any:
        (value,) = (self._row(call, conn, **arguments)).values()
        return value

    def _query(
        self,
        statement: bytes,
        values: Mapping[str, Any],
        conn: Connection[Any] | None,
        *,
        repeatable: bool,
        rows: Callable[[Any], Callable[[Sequence[Any]], Any]] = dict_row,
    ) -> list[Any]:
        with translated():
            if conn is not None:
                return _fetch(conn, statement, values, rows)
            again = may_repeat(repeatable=repeatable)
            try:
                return self._alone(statement, values, rows)
            except psycopg.Error as exc:
                if not again(exc):
                    raise
            retrying = Retrying(
                retry=retry_if_exception(again),
                wait=wait_random_exponential(multiplier=0.02, max=1),
                stop=stop_after_attempt(ATTEMPTS - 1),
                reraise=True,
            )
            return retrying(self._alone, statement, values, rows)

    def _alone(
        self,
        statement: bytes,
        values: Mapping[str, Any],
        rows: Callable[[Any], Callable[[Sequence[Any]], Any]],
    ) -> list[Any]:
        with self.connection() as conn:
            return _fetch(conn, statement, values, rows)

    # Producers

    def enqueue_job(
        self,
        queue: str,
        items: Sequence[JsonValue] | None = None,
        params: JsonValue = None,
        batch_size: int | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        name: str | None = None,
        dedupe_key: str | None = None,
        failure_threshold: float | Decimal | None = None,
        max_attempts: int | None = None,
        stages: Sequence[str] | None = None,
        barriers: Sequence[str] | None = None,
        hold: bool | None = None,
        seal: bool | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> int:
        """Start a job and return its id.

        `items` are for the first stage; None is one item, the params; an empty list is a job that
        succeeds at once. Higher `priority` first. `hold` leaves it CREATED until `release_job`;
        with `seal=False` it takes more items by `add_items` until `seal_job`. With a `dedupe_key`:
        the id of the queue's job with that key that is not final, if there is one.
        """
        return int(
            self._value(
                "enqueue_job",
                conn,
                queue=queue,
                items=items,
                params=params,
                batch_size=batch_size,
                priority=priority,
                run_at=run_at,
                name=name,
                dedupe_key=dedupe_key,
                failure_threshold=failure_threshold,
                max_attempts=max_attempts,
                stages=stages,
                barriers=barriers,
                hold=hold,
                seal=seal,
            )
        )

    def enqueue_jobs(
        self,
        queue: str,
        params: Sequence[JsonValue],
        priority: int | None = None,
        run_at: datetime | None = None,
        name: str | None = None,
        failure_threshold: float | Decimal | None = None,
        max_attempts: int | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[int]:
        """Start many one-batch jobs, one for each element of `params`, and return their ids."""
        return list(
            self._value(
                "enqueue_jobs",
                conn,
                queue=queue,
                params=params,
                priority=priority,
                run_at=run_at,
                name=name,
                failure_threshold=failure_threshold,
                max_attempts=max_attempts,
            )
        )

    def add_items(
        self,
        job_id: int,
        items: Sequence[JsonValue],
        stage: str | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Add items to a stage of an unsealed job, by default the first. Not safe to repeat."""
        return JobStatus(self._value("add_items", conn, job_id=job_id, items=items, stage=stage))

    def seal_job(
        self,
        job_id: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Say that no more items come. Safe to repeat."""
        return JobStatus(self._value("seal_job", conn, job_id=job_id))

    def release_job(
        self,
        job_id: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Let a held job run. Safe to repeat."""
        return JobStatus(self._value("release_job", conn, job_id=job_id))

    # Workers

    def claim_next_job(
        self,
        worker: str,
        queues: Sequence[str] | None = None,
        max_batches: int | None = None,
        lease: timedelta | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Claim]:
        """Lease up to `max_batches` batches of the job whose turn it is, if there is one."""
        return self._list(
            Claim,
            "claim_next_job",
            conn,
            worker=worker,
            queues=queues,
            max_batches=max_batches,
            lease=lease,
        )

    def claim_next_batch(
        self,
        job_id: int,
        worker: str,
        max_batches: int | None = None,
        lease: timedelta | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Claim]:
        """Lease up to `max_batches` batches of this job, later stages first."""
        return self._list(
            Claim,
            "claim_next_batch",
            conn,
            job_id=job_id,
            worker=worker,
            max_batches=max_batches,
            lease=lease,
        )

    def claim_jobs(
        self,
        worker: str,
        queues: Sequence[str] | None = None,
        max_jobs: int | None = None,
        lease: timedelta | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Claim]:
        """Lease one batch from each of up to `max_jobs` jobs."""
        return self._list(
            Claim, "claim_jobs", conn, worker=worker, queues=queues, max_jobs=max_jobs, lease=lease
        )

    def record_batch(
        self,
        batch_id: int,
        lease_epoch: int,
        failed: Sequence[Mapping[str, JsonValue]] | None = None,
        counters: Mapping[str, int] | None = None,
        next_items: Sequence[JsonValue] | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> RecordResult:
        """Record the result of a leased batch. Its other items succeeded.

        failed      the items that failed, each `{"index": 3, "error": "..."}`, index from 0
        counters    whole numbers from 0, added to the stage's counters
        next_items  items for the next stage

        Raises `StaleLease` if the lease is another's by now: then nothing of the transaction stays.
        Raises `AlreadyRecorded` if it was recorded under this very lease.
        """
        return self._one(
            RecordResult,
            "record_batch",
            conn,
            batch_id=batch_id,
            lease_epoch=lease_epoch,
            failed=failed,
            counters=counters,
            next_items=next_items,
        )

    def record_and_claim(
        self,
        batch_id: int,
        lease_epoch: int,
        worker: str,
        failed: Sequence[Mapping[str, JsonValue]] | None = None,
        counters: Mapping[str, int] | None = None,
        next_items: Sequence[JsonValue] | None = None,
        max_batches: int | None = None,
        lease: timedelta | None = None,
        queues: Sequence[str] | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> RecordedAndClaimed:
        """Record a batch and lease the next of its job, in one round trip and one commit.

        With `queues`, where that job has no more: of the job whose turn it is in these.
        """
        rows = self._rows(
            "record_and_claim",
            conn,
            batch_id=batch_id,
            lease_epoch=lease_epoch,
            worker=worker,
            failed=failed,
            counters=counters,
            next_items=next_items,
            max_batches=max_batches,
            lease=lease,
            queues=queues,
        )
        return RecordedAndClaimed(
            recorded_status=JobStatus(rows[0]["recorded_status"]),
            claims=tuple(Claim.from_row(row) for row in rows if row["batch_id"] is not None),
        )

    def record_batches(
        self,
        batch_ids: Sequence[int],
        lease_epochs: Sequence[int],
        failed: Sequence[Sequence[Mapping[str, JsonValue]]] | None = None,
        counters: Sequence[Mapping[str, int]] | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[BatchOutcome]:
        """Record many batches. Does not raise for a stale one, so write no rows along with it.

        The nth elements of `failed` and `counters` are those of the nth batch.
        """
        return self._list(
            BatchOutcome,
            "record_batches",
            conn,
            batch_ids=batch_ids,
            lease_epochs=lease_epochs,
            failed=failed,
            counters=counters,
        )

    def extend_lease(
        self,
        batch_id: int,
        lease_epoch: int,
        lease: timedelta | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> LeaseState:
        """Let the lease last that long from now, and learn the job's status."""
        return self._one(
            LeaseState,
            "extend_lease",
            conn,
            batch_id=batch_id,
            lease_epoch=lease_epoch,
            lease=lease,
        )

    def release_batch(
        self,
        batch_id: int,
        lease_epoch: int,
        error: str | None = None,
        retry_in: timedelta | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Give a batch back. With an `error` it costs an attempt, without it does not."""
        return JobStatus(
            self._value(
                "release_batch",
                conn,
                batch_id=batch_id,
                lease_epoch=lease_epoch,
                error=error,
                retry_in=retry_in,
            )
        )

    def report_refused(
        self,
        batch_id: int,
        lease_epoch: int,
        sqlstate: str,
        detail: str | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> None:
        """Tell, afterwards and in a transaction of its own, that a result was refused."""
        self._value(
            "report_refused",
            conn,
            batch_id=batch_id,
            lease_epoch=lease_epoch,
            sqlstate=sqlstate,
            detail=detail,
        )

    def reap_leases(
        self,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Reaped]:
        """Take back expired leases and end overdue cancels."""
        return self._list(Reaped, "reap_leases", conn)

    # Operators

    def cancel_job(
        self,
        job_id: int,
        reason: str | None = None,
        grace: timedelta | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Stop a job. Leased batches may still be recorded within the grace.

        A grace of 0 fences them at once. A final job keeps its status.
        """
        return JobStatus(self._value("cancel_job", conn, job_id=job_id, reason=reason, grace=grace))

    def finalize_job(
        self,
        job_id: int,
        status: JobStatus | str | None = None,
        reason: str | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> Finalized:
        """End a job: without `status` only if it is complete; else force that one."""
        return self._one(
            Finalized, "finalize_job", conn, job_id=job_id, status=status, reason=reason
        )

    def retry_job(
        self,
        job_id: int,
        failed_only: bool | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Start the next run of a final job, of all items or of the failed and unfinished ones."""
        return JobStatus(self._value("retry_job", conn, job_id=job_id, failed_only=failed_only))

    def quarantine_job(
        self,
        job_id: int,
        reason: str,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Fence a job's leases and set it aside as UNKNOWN, until `resolve_job`."""
        return JobStatus(self._value("quarantine_job", conn, job_id=job_id, reason=reason))

    def resolve_job(
        self,
        job_id: int,
        status: JobStatus | str,
        reason: str,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Decide about an UNKNOWN job: RETRY goes on with the same run, FAILURE ends it."""
        return JobStatus(
            self._value("resolve_job", conn, job_id=job_id, status=status, reason=reason)
        )

    def pause_job(
        self,
        job_id: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Let nothing of this job be claimed. Work in flight may be recorded."""
        return JobStatus(self._value("pause_job", conn, job_id=job_id))

    def resume_job(
        self,
        job_id: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Undo `pause_job`."""
        return JobStatus(self._value("resume_job", conn, job_id=job_id))

    def pause_queue(
        self,
        queue: str,
        *,
        conn: Connection[Any] | None = None,
    ) -> None:
        """Let nothing of this queue be claimed. Work in flight may be recorded."""
        self._value("pause_queue", conn, queue=queue)

    def resume_queue(
        self,
        queue: str,
        *,
        conn: Connection[Any] | None = None,
    ) -> None:
        """Undo `pause_queue`."""
        self._value("resume_queue", conn, queue=queue)

    def set_priority(
        self,
        job_id: int,
        priority: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> JobStatus:
        """Change a job's priority; higher first."""
        return JobStatus(self._value("set_priority", conn, job_id=job_id, priority=priority))

    def reap(
        self,
        stale_after: timedelta | None = None,
        dry_run: bool | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Reaped]:
        """Take back expired leases, end overdue cancels, and with `stale_after` revoke stale jobs.

        Returns what it did, or with `dry_run` would do.
        """
        return self._list(Reaped, "reap", conn, stale_after=stale_after, dry_run=dry_run)

    def purge_jobs(
        self,
        older_than: timedelta,
        *,
        conn: Connection[Any] | None = None,
    ) -> int:
        """Delete the jobs that ended longer ago than this, and return how many."""
        return int(self._value("purge_jobs", conn, older_than=older_than))

    # Readers

    def job_progress(
        self,
        job_id: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> Progress:
        """Return the progress document of a job."""
        return Progress.from_document(self._value("job_progress", conn, job_id=job_id))

    def explain_job(
        self,
        job_id: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Explanation]:
        """Say why a job is where it is, and what to do."""
        return self._list(Explanation, "explain_job", conn, job_id=job_id)

    def audit_job(
        self,
        job_id: int | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Discrepancy]:
        """Recompute a job's numbers, or all jobs', from the ledger. No rows: all agrees."""
        return self._list(Discrepancy, "audit_job", conn, job_id=job_id)

    def job_history(
        self,
        job_id: int,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[HistoryEntry]:
        """Return every change of a job's status, the oldest first."""
        return self._list(HistoryEntry, "job_history", conn, job_id=job_id)

    def queue_stats(
        self,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[QueueStat]:
        """Return the queues and what is in them."""
        return self._list(QueueStat, "queue_stats", conn)

    def active_workers(
        self,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[WorkerStat]:
        """Return the workers that asked for work lately."""
        return self._list(WorkerStat, "active_workers", conn)

    def job(self, job_id: int, *, conn: Connection[Any] | None = None) -> Job:
        """Return a job from the view `pyjobs.job`; needs the role of a reader or an operator."""
        values = {"job_id": job_id}
        found = self._query(ONE_JOB, values, conn, repeatable=True, rows=rows_of(Job))
        if not found:
            raise NotFound(f"there is no job {job_id}")
        return cast("Job", found[0])

    def jobs(
        self,
        queue: str | None = None,
        status: JobStatus | str | Sequence[JobStatus | str] | None = None,
        name: str | None = None,
        *,
        limit: int = 100,
        before: int | None = None,
        conn: Connection[Any] | None = None,
    ) -> list[Job]:
        """List jobs by queue, status (one or several) and name, the highest ids first.

        `before=` the last id of one list goes on with the next. Needs the role of a reader or an
        operator.
        """
        statement, values = prepare_listing(queue, status, name, before, limit)
        return self._query(statement, values, conn, repeatable=True, rows=rows_of(Job))

    def wait(
        self,
        job_id: int,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - the same as in the sync twin
        poll: timedelta | float = 1.0,
    ) -> Progress:
        """Wait until a job is final, and return its progress.

        `timeout` and `poll` are timedeltas or seconds. It looks often at first, and then every
        `poll`. Raises `TimeoutError` if the job is not final in time.
        """
        limit = None if timeout is None else seconds(timeout)
        start = monotonic()
        pause = min(0.02, seconds(poll))
        while True:
            progress = self.job_progress(job_id)
            if progress.status.final:
                return progress
            waited = monotonic() - start
            if limit is not None and waited >= limit:
                raise TimeoutError(
                    f"job {job_id} is {progress.status} at {progress.progress:.1%}"
                    f" after {waited:.1f} s"
                )
            # Jittered, so that those who wait for the same job do not ask at the same moment.
            nap = pause * random.uniform(0.8, 1.2)  # noqa: S311 - not for secrets
            time.sleep(nap if limit is None else min(nap, limit - waited))
            pause = min(pause * 1.5, seconds(poll))


def _fetch(
    conn: Connection[Any],
    statement: bytes,
    values: Mapping[str, Any],
    rows: Callable[[Any], Callable[[Sequence[Any]], Any]],
) -> list[Any]:
    with conn.cursor(row_factory=rows) as cursor:
        set_json_loads(read_json, cursor)
        cursor.execute(statement, values)
        return cursor.fetchall()
