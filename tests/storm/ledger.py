"""What clients were told, kept where no crash of theirs or of the server can reach it.

One file for each process, one line for each entry. A line is one ``write`` to a file opened with
O_APPEND: once that has returned, the line survives the writer's SIGKILL.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Entry = tuple[str, str, str, dict[str, Any]]


class Ledger:
    """A process' own file.

    ``intend`` before a call; ``acked`` when its commit was acknowledged; ``undone`` before it is
    rolled back; ``refused`` when it was refused for good; ``saw`` for what was read; ``count`` for
    the statistics; ``trouble`` for what should never be.
    """

    def __init__(self, folder: str | Path, actor: str) -> None:
        self.actor = actor
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(Path(folder) / f"{actor}.jsonl", flags, 0o600)

    def write(self, what: str, kind: str, /, **fields: Any) -> None:
        """Append one entry."""
        line = json.dumps([what, kind, fields], separators=(",", ":")).encode() + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("the ledger could not be written")

    def intend(self, kind: str, /, **fields: Any) -> None:
        self.write("intend", kind, **fields)

    def acked(self, kind: str, /, **fields: Any) -> None:
        self.write("acked", kind, **fields)

    def undone(self, kind: str, /, **fields: Any) -> None:
        self.write("undone", kind, **fields)

    def refused(self, kind: str, /, **fields: Any) -> None:
        self.write("refused", kind, **fields)

    def saw(self, kind: str, /, **fields: Any) -> None:
        self.write("saw", kind, **fields)

    def count(self, kind: str) -> None:
        self.write("count", kind)

    def trouble(self, text: str) -> None:
        self.write("trouble", text[:2000])


def read(folder: str | Path) -> Iterator[Entry]:
    """All entries of all processes: actor, what, kind, fields.

    A last line without its end was being written by a process that was killed: nothing was done
    about it yet.
    """
    for path in sorted(Path(folder).glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    what, kind, fields = json.loads(line)
                    yield path.stem, what, kind, fields
