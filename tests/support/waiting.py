"""Waiting for a condition with a deadline; never for a time."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.pooler import server_pid

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout: float = 20) -> T:
    """Call until it returns something true, and return that; after the deadline fail."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout} s still not so: {what}")
        time.sleep(0.005)


def wait_for_lock(
    observer: psycopg.Connection[Any],
    waiter: int | psycopg.Connection[Any],
    blocker: int | psycopg.Connection[Any] | None = None,
    timeout: float = 20,
) -> list[int]:
    """Wait until a session really waits for a lock, of ``blocker`` if given.

    ``observer`` is another connection, in autocommit mode. Sessions are given as connections or
    as server process ids. Returns the ids of those who hold the lock or stand before it.
    """
    wanted = None if blocker is None else _pid(blocker)

    def blockers() -> list[int]:
        # Behind a pooler a session has a process only while it is in a transaction.
        pid = _pid(waiter)
        row = observer.execute("select pg_blocking_pids(%s)", [pid]).fetchone()
        found: list[int] = row[0] if row else []
        return found if wanted is None or wanted in found else []

    return wait_until(blockers, f"{waiter} waits for a lock of {wanted or 'anybody'}", timeout)


def _pid(session: int | psycopg.Connection[Any]) -> int:
    return session if isinstance(session, int) else pid_of(session)


# Connections that go through a pooler, and a connection string for the pooler's console.
POOLED: weakref.WeakKeyDictionary[psycopg.Connection[Any], str] = weakref.WeakKeyDictionary()


def pid_of(conn: psycopg.Connection[Any]) -> int:
    """The server process that works for a connection; 0 if none does at the moment."""
    console = POOLED.get(conn)
    return conn.info.backend_pid if console is None else server_pid(conn, console) or 0


class Background:
    """Runs calls in threads of their own: ``future = background(conn.execute, "select ...")``.

    ``future.result(timeout)`` gives the result or raises what the call raised.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def __call__(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  (handed to whoever asks the future)
                future.set_exception(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return future

    def join(self, timeout: float = 20) -> None:
        """Wait for all of them; fail if one does not end."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [t.name for t in self._threads if t.is_alive()]
        assert not left, f"calls in the background did not end: {left}"
