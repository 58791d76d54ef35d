"""For an application's own tests: run its handlers here and now, and set the database's clock.

    def test_thumbnails(client):
        job = client.enqueue_job("imaging", ["a.png", "b.png"])
        run_until_idle(client, make_thumbnails, ["imaging"])
        assert client.job_progress(job).stages[0].counters == {"thumbnails": 2}

The database is a real one: `pyjobs.embedded` has a server, `pyjobs.migrate` the schema.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pyjobs._async.worker import AsyncWorker
from pyjobs._sync.worker import Worker
from pyjobs.errors import is_passing
from pyjobs.migrate import schema_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

    from pyjobs import AsyncClient, AsyncLazyConnection, Batch, Client, LazyConnection
    from pyjobs._async.worker import AsyncHandler
    from pyjobs._sync.worker import Handler

__all__ = ["SettableClock", "async_run_until_idle", "run_until_idle"]

# No second process, no signals, and what failed is tried again at once.
_OPTIONS: dict[str, Any] = {
    "heartbeat": False,
    "signals": False,
    "poll": 0.02,
    "retry_in": lambda _attempt: timedelta(0),
}


def run_until_idle(
    client: Client,
    handler: Handler,
    queues: Sequence[str] = ("default",),
    *,
    raise_errors: bool = True,
    **options: Any,
) -> None:
    """Let a worker work these queues, in this process, until there is nothing to claim.

    A batch whose handler raises is tried again at once, until its attempts are used up; then, with
    `raise_errors`, the first exception is raised here. `options` are those of `Worker`.
    """
    raised: list[Exception] = []

    def noticing(batch: Batch, conn: LazyConnection) -> None:
        try:
            handler(batch, conn)
        except Exception as exc:
            raised.append(exc)
            raise

    Worker(client, noticing, queues, **{**_OPTIONS, **options}).run(until_idle=True)
    _raise_first(raised if raise_errors else [])


async def async_run_until_idle(
    client: AsyncClient,
    handler: AsyncHandler,
    queues: Sequence[str] = ("default",),
    *,
    raise_errors: bool = True,
    **options: Any,
) -> None:
    """Do as `run_until_idle` does, with an asynchronous client and handler."""
    raised: list[Exception] = []

    async def noticing(batch: Batch, conn: AsyncLazyConnection) -> None:
        try:
            await handler(batch, conn)
        except Exception as exc:
            raised.append(exc)
            raise

    await AsyncWorker(client, noticing, queues, **{**_OPTIONS, **options}).run(until_idle=True)
    _raise_first(raised if raise_errors else [])


def _raise_first(raised: Sequence[Exception]) -> None:
    for exc in raised:
        if not is_passing(exc):  # those the worker has dealt with by itself
            raise exc


class SettableClock:
    """The time as pyjobs sees it, in a test's database: leases run out without waiting.

    `conn` is a connection of the schema's owner, in autocommit mode. Making one of these replaces
    pyjobs' clock in this database, for good: never do that in a database with real jobs.
    """

    def __init__(self, conn: Connection[Any]) -> None:
        self._conn = conn
        script = schema_root() / "sql" / "testing" / "settable_clock.sql"
        conn.execute(script.read_bytes())

    def advance(self, duration: timedelta) -> None:
        """Let that much time go by. It never goes back: what was due would be due no longer."""
        self._conn.execute(
            "update pyjobs_internal.test_clock set ahead = ahead + %s::interval", [duration]
        )
