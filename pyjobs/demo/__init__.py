"""The Hubble survey: pyjobs at work on a real picture, with everything going wrong that can.

`pyjobs demo`, or `python -m pyjobs.demo`. Where to look:

    science     cut, detect, merge, draw; knows nothing of jobs
    plain       the same survey in a single plain process, to check against
    schema.sql  the application's own tables
    handlers    what a worker does in each stage
    worker      the worker process
    survey      from the server's start to the account
    mischief    kill -9, suspension, cancel, retry
    processes   starting, hearing and stopping worker processes
    display     bars on a terminal, lines in a pipe
    check       the questions put to the database at the end
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyjobs.demo.check import Setup
    from pyjobs.demo.mischief import Record

    Checkpoint = Callable[[str, Setup, Record], None]

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    database_url  a database to run in, as its owner; None: a server of the demo's own
    output        where the picture with the marked sources goes
    keep          leave the server up at the end
    workers       how many worker processes, at least 4
    pace          seconds that a tile takes, beside the finding of its sources
    """

    database_url: str | None = None
    output: Path = Path("hubble-survey.png")
    keep: bool = False
    workers: int = 4
    pace: float = 0.1


def run(
    options: Options | None = None,
    console: Console | None = None,
    before_check: Checkpoint | None = None,
) -> int:
    """Run the demo and return an exit status: 0 only where all that it checks holds.

    `before_check` is called with the database's URL and what was done there, when all is done and
    nothing is checked yet: by tests, to see that the check finds what is wrong.
    """
    console = console or _make_console()
    try:
        from pyjobs.demo import survey  # noqa: PLC0415  (needs the extra)
    except ModuleNotFoundError as error:
        console.print(
            f"The demo needs {error.name}: pip install 'pyjobs[binary,embedded,demo]'",
            markup=False,
        )
        return 2
    return survey.run(options or Options(), console, before_check)


def _make_console() -> Console:
    console = Console()
    # A pipe has no width; a terminal's own is kept where it is narrower than what we print.
    console.width = min(console.width, 80) if console.is_terminal else 80
    return console
