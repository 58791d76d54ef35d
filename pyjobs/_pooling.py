"""What both clients want of their connections."""

from __future__ import annotations

import select
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from pyjobs.errors import is_connection_lost, is_rolled_back

if TYPE_CHECKING:
    from collections.abc import Callable

# A server that vanished without a word is noticed within a minute or so, not after two hours.
_DEFAULTS: dict[str, Any] = {
    "application_name": "pyjobs",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def with_defaults(conninfo: str) -> str:
    """Add pyjobs' own defaults to a conninfo; what it says itself stays."""
    return make_conninfo(conninfo, **{**_DEFAULTS, **conninfo_to_dict(conninfo)})


def has_word(fileno: int) -> bool:
    """Tell whether an idle connection has something to say: mostly, that its server is gone.

    Costs one system call where a check by a query costs a round trip.
    """
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])


def may_repeat(*, repeatable: bool) -> Callable[[BaseException], bool]:
    """Which errors a call of its own may be tried again after.

    What the server rolled back did not happen. A lost connection leaves that open. A pool that had
    no connection to give has been waiting long enough.
    """

    def decide(exc: BaseException) -> bool:
        if is_rolled_back(exc):
            return True
        return repeatable and is_connection_lost(exc) and not isinstance(exc, PoolTimeout)

    return decide


def seconds(duration: timedelta | float) -> float:
    """A duration as seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
