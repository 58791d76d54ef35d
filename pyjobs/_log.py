"""Loggers: structlog, and without an application that has configured it, standard logging."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_KEY_VALUES = structlog.processors.LogfmtRenderer(bool_as_flag=False)


def _to_logging(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> tuple[Any, Any]:
    """Make "event key=value ..." of it, so that a plain log file has all of it too."""
    message = str(event.pop("event"))
    exc_info = event.pop("exc_info", None)
    values = str(_KEY_VALUES(None, "", event))
    # As an argument: what a value contains is not taken for a format.
    return ("%s", f"{message} {values}".rstrip()), {"exc_info": exc_info}


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger that goes where the application's structlog goes, if it has one.

    Unconfigured, structlog prints everything to standard output, which is not a library's to use.
    """
    if structlog.is_configured():
        return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[structlog.stdlib.filter_by_level, _to_logging],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


def tells_info(logger: object) -> bool:
    """Whether what is logged at level INFO goes anywhere; where nobody can say, it does.

    For what is said of every batch: to put a line together that nobody reads takes longer than
    all the rest.
    """
    if isinstance(logger, structlog.stdlib.BoundLogger):
        with suppress(AttributeError):  # it may be made of anything
            return logger.isEnabledFor(logging.INFO)
    return True
