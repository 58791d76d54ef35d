"""The errors that the SQL functions raise, as Python exceptions, one class for each SQLSTATE."""
# ruff: noqa: N818 - the classes are named for what happened, as the SQLSTATEs are

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import psycopg
from psycopg_pool import PoolClosed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AlreadyRecorded",
    "Error",
    "IllegalTransition",
    "InvalidArgument",
    "NotAccepted",
    "NotFound",
    "StaleLease",
    "WrongIsolation",
    "from_psycopg",
    "translated",
]


class Error(Exception):
    """What a pyjobs function refused, and why.

    `sqlstate`, `message`, `detail` and `hint` are the server's; `str()` shows the last three, a
    line each. The psycopg exception is the `__cause__`.
    """

    code: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate or self.code
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL: {self.detail}")
        if self.hint:
            lines.append(f"HINT: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments would be lost on the way to another process.
        return (_rebuild, (type(self), self.message, self.sqlstate, self.detail, self.hint))


def _rebuild(
    cls: type[Error], message: str, sqlstate: str, detail: str | None, hint: str | None
) -> Error:
    return cls(message, sqlstate=sqlstate, detail=detail, hint=hint)


class StaleLease(Error):
    """PJ001: the lease is another's by now, or was fenced. Nothing of the transaction remains."""

    code = "PJ001"


class AlreadyRecorded(Error):
    """PJ002: the batch was recorded under this very lease; after a lost answer that is success."""

    code = "PJ002"


class IllegalTransition(Error):
    """PJ003: the job's status does not lead where the call wants it to go."""

    code = "PJ003"


class NotFound(Error):
    """PJ004: no such job or batch."""

    code = "PJ004"


class InvalidArgument(Error):
    """PJ005: an argument is not what it should be; the message names it."""

    code = "PJ005"


class NotAccepted(Error):
    """PJ006: the job does not take this now."""

    code = "PJ006"


class WrongIsolation(Error):
    """PJ007: the transaction's isolation level is not READ COMMITTED."""

    code = "PJ007"


_BY_CODE: dict[str, type[Error]] = {cls.code: cls for cls in Error.__subclasses__()}


def from_psycopg(exc: psycopg.Error) -> Error | None:
    """The pyjobs error that a psycopg error stands for; None if it is not one of pyjobs' own.

    A state of class PJ that this version does not know yet comes as a plain `Error`.
    """
    state = exc.sqlstate
    if state is None or not state.startswith("PJ"):
        return None
    diag = exc.diag
    return _BY_CODE.get(state, Error)(
        diag.message_primary or str(exc),
        sqlstate=state,
        detail=diag.message_detail,
        hint=diag.message_hint,
    )


@contextmanager
def translated() -> Iterator[None]:
    """Within it, psycopg errors of class PJ are raised as their `pyjobs.Error`.

    For code that calls the functions through a cursor of its own.
    """
    try:
        yield
    except psycopg.Error as exc:
        if exc.sqlstate in _PREPARED:
            exc.add_note(
                "Behind a pooler that shares sessions, statements must not be prepared: make the"
                " connections with prepare_threshold=None, as a pyjobs client does by default."
            )
        if (own := from_psycopg(exc)) is None:
            raise
        raise own from exc


# A prepared statement that is not there, or is there already: invalid_sql_statement_name,
# duplicate_prepared_statement. They come from a pooler that changes the session underneath.
_PREPARED = frozenset({"26000", "42P05"})
# What a server says when it goes away, or is not there yet: admin_shutdown, crash_shutdown,
# cannot_connect_now.
_GOING = frozenset({"57P01", "57P02", "57P03"})
# Rolled back as a whole by the server, to be tried again: serialization_failure, deadlock_detected.
_ROLLED_BACK = frozenset({"40001", "40P01"})
# The server lives but cannot serve now: class 53 (resources), lock_not_available, query_canceled
# (by a statement_timeout).
_BUSY = frozenset({"55P03", "57014"})


def is_rolled_back(exc: BaseException) -> bool:
    """Tell whether the server rolled the transaction back, so that it may simply be tried again."""
    return isinstance(exc, psycopg.Error) and exc.sqlstate in _ROLLED_BACK


def is_connection_lost(exc: BaseException) -> bool:
    """Tell whether the connection was lost, so that the fate of a commit under way is unknown."""
    # psycopg's own, without a word of the server: more answers than questions, as from a pooler
    # whose server ended in the middle of one.
    if isinstance(exc, psycopg.InternalError) and exc.sqlstate is None:
        return True
    if not isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    if isinstance(exc, PoolClosed):
        return False
    state = exc.sqlstate
    return state is None or state.startswith("08") or state in _GOING


def is_passing(exc: BaseException) -> bool:
    """Tell whether it passes: connection lost, server restarting or busy, a deadlock."""
    if is_rolled_back(exc) or is_connection_lost(exc):
        return True
    if not isinstance(exc, psycopg.Error) or exc.sqlstate is None:
        return False
    return exc.sqlstate.startswith("53") or exc.sqlstate in _BUSY
