"""The connection that a handler is given: its transaction opens when it is first used."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self

from psycopg.pq import TransactionStatus

from pyjobs import _aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg import AsyncConnection, AsyncCursor, AsyncTransaction

    from pyjobs._async.client import AsyncClient

    _Base = AsyncConnection[Any]
else:
    _Base = object

__all__ = ["AsyncLazyConnection"]


class AsyncLazyConnection(_Base):
    """Stands for a psycopg connection, in a transaction that the worker commits with the record.

    It is used like one, and type checkers take it for one: `execute`, `cursor`, `transaction` (a
    savepoint), `pipeline`. Other attributes are there once it has been used. No connection is taken
    from the pool before; so a handler that computes first and writes afterwards computes outside a
    transaction. It cannot be committed, rolled back or closed: to keep nothing, raise. `await
    conn.real()` is the psycopg connection itself, for libraries that insist.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._stack: AsyncExitStack | None = None
        self._lock = _aio.Lock()
        self._conn: AsyncConnection[Any] | None = None
        self._used = False
        self._ended = False

    @property
    def used(self) -> bool:
        """Whether the transaction has been opened."""
        return self._used

    async def real(self) -> AsyncConnection[Any]:
        """Return the psycopg connection, with the transaction open."""
        async with self._lock:
            if self._ended:
                raise RuntimeError(
                    "the handler's connection is used after the batch has ended: its transaction"
                    " is over, and the connection may serve another batch by now"
                )
            if self._conn is None:
                # Where it cannot begin, the connection goes back: who asks again gets another.
                async with AsyncExitStack() as stack:
                    conn = await stack.enter_async_context(self._client.connection())
                    # Within a transaction block psycopg itself refuses commit() and rollback().
                    await stack.enter_async_context(conn.transaction())
                    self._stack = stack.pop_all()
                self._conn = conn
                self._used = True
            return self._conn

    def scope(self) -> AsyncScope:
        """Commit at the end what was done on it, or roll it back where an error ends it."""
        return AsyncScope(self)

    async def end(self, *exc: Any) -> bool | None:
        """Commit, or with an error roll back, and give the connection to the pool."""
        # Whoever still has it (a thread, a task) must not write into another's batch.
        self._ended = True
        self._conn = None
        stack = self._stack
        return None if stack is None else await stack.__aexit__(*exc)

    def require_transaction(self) -> None:
        """Refuse to go on where the transaction was ended by a statement, behind psycopg's back."""
        if self._conn is not None and (
            self._conn.info.transaction_status == TransactionStatus.IDLE
        ):
            _refuse("committed or rolled back, as a statement of the handler did")

    async def execute(self, *args: Any, **kwargs: Any) -> AsyncCursor[Any]:
        """Execute a query, as psycopg's connections do."""
        return await (await self.real()).execute(*args, **kwargs)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Make a cursor, as psycopg's connections do."""
        return _LazyCursor(self, args, kwargs)

    @asynccontextmanager
    async def transaction(self, *args: Any, **kwargs: Any) -> AsyncIterator[AsyncTransaction]:
        """A savepoint within the transaction that is committed with the record."""
        async with (await self.real()).transaction(*args, **kwargs) as transaction:
            yield transaction

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[Any]:
        """Pipeline mode, as of psycopg's connections."""
        async with (await self.real()).pipeline() as pipeline:
            yield pipeline

    async def commit(self) -> NoReturn:
        """Refused: the worker commits, together with the record of the batch."""
        _refuse("committed")

    async def rollback(self) -> NoReturn:
        """Refused: raise an exception instead."""
        _refuse("rolled back")

    async def close(self) -> NoReturn:
        """Refused: it is the pool's."""
        _refuse("closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
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


class AsyncScope:
    """The block at the end of which a lazy connection's transaction ends."""

    __slots__ = ("_conn",)

    def __init__(self, conn: AsyncLazyConnection) -> None:
        self._conn = conn

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> bool | None:
        return await self._conn.end(*exc)


class _LazyCursor:
    """A cursor of a lazy connection; it opens the transaction when it first executes."""

    def __init__(
        self, conn: AsyncLazyConnection, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._conn = conn
        self._args = args
        self._kwargs = kwargs
        self._cursor: Any = None

    async def _real(self) -> Any:
        if self._cursor is None:
            self._cursor = (await self._conn.real()).cursor(*self._args, **self._kwargs)
        return self._cursor

    async def __aenter__(self) -> Any:
        return await self._real()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._cursor is not None:
            await self._cursor.close()

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await (await self._real()).execute(*args, **kwargs)

    async def executemany(self, *args: Any, **kwargs: Any) -> None:
        await (await self._real()).executemany(*args, **kwargs)

    @asynccontextmanager
    async def copy(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with (await self._real()).copy(*args, **kwargs) as copy:
            yield copy

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for row in (await self._real()).stream(*args, **kwargs):
            yield row

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._cursor.__aiter__()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._cursor is None:
            raise AttributeError(f"{name!r} of a cursor is there once it has executed something")
        return getattr(self._cursor, name)


def _refuse(what: str) -> NoReturn:
    raise RuntimeError(
        f"the handler's connection cannot be {what}: the worker commits it together with the"
        " record of the batch, and rolls it back if the handler raises"
    )
