# Made from pyjobs/_async/lazy.py by tools/generate.py: edit that one, and run it.
"""The connection that a handler is given: its transaction opens when it is first used."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self

from psycopg.pq import TransactionStatus

from pyjobs import _threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection, Cursor, Transaction

    from pyjobs._sync.client import Client

    _Base = Connection[Any]
else:
    _Base = object

__all__ = ["LazyConnection"]


class LazyConnection(_Base):
    """Stands for a psycopg connection, in a transaction that the worker commits with the record.

    It is used like one, and type checkers take it for one: `execute`, `cursor`, `transaction` (a
    savepoint), `pipeline`. Other attributes are there once it has been used. No connection is taken
    from the pool before; so a handler that computes first and writes afterwards computes outside a
    transaction. It cannot be committed, rolled back or closed: to keep nothing, raise. `await
    conn.real()` is the psycopg connection itself, for libraries that insist.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stack: ExitStack | None = None
        self._lock = _threads.Lock()
        self._conn: Connection[Any] | None = None
        self._used = False
        self._ended = False

    @property
    def used(self) -> bool:
        """Whether the transaction has been opened."""
        return self._used

    def real(self) -> Connection[Any]:
        """Return the psycopg connection, with the transaction open."""
        with self._lock:
            if self._ended:
                raise RuntimeError(
                    "the handler's connection is used after the batch has ended: its transaction"
                    " is over, and the connection may serve another batch by now"
                )
            if self._conn is None:
                # Where it cannot begin, the connection goes back: who asks again gets another.
                with ExitStack() as stack:
                    conn = stack.enter_context(self._client.connection())
                    # Within a transaction block psycopg itself refuses commit() and rollback().
                    stack.enter_context(conn.transaction())
                    self._stack = stack.pop_all()
                self._conn = conn
                self._used = True
            return self._conn

    def scope(self) -> Scope:
        """Commit at the end what was done on it, or roll it back where an error ends it."""
        return Scope(self)

    def end(self, *exc: Any) -> bool | None:
        """Commit, or with an error roll back, and give the connection to the pool."""
        # Whoever still has it (a thread, a task) must not write into another's batch.
        self._ended = True
        self._conn = None
        stack = self._stack
        return None if stack is None else stack.__exit__(*exc)

    def require_transaction(self) -> None:
        """Refuse to go on where the transaction was ended by a statement, behind psycopg's back."""
        if self._conn is not None and (
            self._conn.info.transaction_status == TransactionStatus.IDLE
        ):
            _refuse("committed or rolled back, as a statement of the handler did")

    def execute(self, *args: Any, **kwargs: Any) -> Cursor[Any]:
        """Execute a query, as psycopg's connections do."""
        return (self.real()).execute(*args, **kwargs)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Make a cursor, as psycopg's connections do."""
        return _LazyCursor(self, args, kwargs)

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[Transaction]:
        """A savepoint within the transaction that is committed with the record."""
        with (self.real()).transaction(*args, **kwargs) as transaction:
            yield transaction

    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        """Pipeline mode, as of psycopg's connections."""
        with (self.real()).pipeline() as pipeline:
            yield pipeline

    def commit(self) -> NoReturn:
        """Refused: the worker commits, together with the record of the batch."""
        _refuse("committed")

    def rollback(self) -> NoReturn:
        """Refused: raise an exception instead."""
        _refuse("rolled back")

    def close(self) -> NoReturn:
        """Refused: it is the pool's."""
        _refuse("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # psycopg's would commit and close.
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._conn is None:
            raise AttributeError(
                f"{name!r} of the handler's connection is there once it has been used;"
                " real() gives the psycopg connection"
            )
        return getattr(self._conn, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._conn or 'not used yet'}>"


class Scope:
    """The block at the end of which a lazy connection's transaction ends."""

    __slots__ = ("_conn",)

    def __init__(self, conn: LazyConnection) -> None:
        self._conn = conn

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> bool | None:
        return self._conn.end(*exc)


class _LazyCursor:
    """A cursor of a lazy connection; it opens the transaction when it first executes."""

    def __init__(self, conn: LazyConnection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._conn = conn
        self._args = args
        self._kwargs = kwargs
        self._cursor: Any = None

    def _real(self) -> Any:
        if self._cursor is None:
            self._cursor = (self._conn.real()).cursor(*self._args, **self._kwargs)
        return self._cursor

    def __enter__(self) -> Any:
        return self._real()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return (self._real()).execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        (self._real()).executemany(*args, **kwargs)

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with (self._real()).copy(*args, **kwargs) as copy:
            yield copy

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from (self._real()).stream(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        return self._cursor.__iter__()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._cursor is None:
            raise AttributeError(f"{name!r} of a cursor is there once it has executed something")
        return getattr(self._cursor, name)


def _refuse(what: str) -> NoReturn:
    raise RuntimeError(
        f"the handler's connection cannot be {what}: the worker commits it together with the"
        " record of the batch, and rolls it back if the handler raises"
    )
