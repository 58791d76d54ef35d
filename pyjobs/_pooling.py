"""What both clients want of their connections."""

from __future__ import annotations

import os
import select
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from pyjobs.errors import is_connection_lost, is_rolled_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import ConnectionInfo

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


# Where a server is: what psycopg narrows down to one address for each attempt to connect.
_PLACE = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT"}


def to_connect_again(info: ConnectionInfo, conninfo: object, kwargs: object) -> str:
    """A conninfo for more connections like this one, made by a pool of that conninfo and kwargs.

    With every host that the pool may go to, not the one address that this connection happens to
    have: after a failover it is another. (A conninfo that is computed is taken as it came out.)
    """
    parameters = dict(info.get_parameters())
    if isinstance(conninfo, str) and (kwargs is None or isinstance(kwargs, dict)):
        asked = {**conninfo_to_dict(conninfo), **(kwargs or {})}
        for name, variable in _PLACE.items():
            value = asked.get(name) or os.environ.get(variable)
            if value:
                parameters[name] = str(value)
            elif name == "hostaddr":
                # psycopg's own looking up of the name
                parameters.pop(name, None)
    # The password is not among the parameters, wherever it came from.
    return make_conninfo(**parameters, password=info.password or None)


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
