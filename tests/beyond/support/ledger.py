"""A file, outside of any database, of what was acknowledged to whom and when."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Ledger:
    """Append-only; each entry is one line, written by one call, so that many may write."""

    def __init__(self, path: Path | str, who: str = "") -> None:
        self.path = Path(path)
        self._who = who
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, what: str, **more: Any) -> None:
        """Note it; ``at`` is in seconds on the machine's monotonic clock."""
        entry = {"at": time.monotonic(), "who": self._who, "pid": os.getpid(), "what": what, **more}
        os.write(self._file, json.dumps(entry).encode() + b"\n")

    def read(self, what: str | None = None) -> list[dict[str, Any]]:
        """All entries so far, or those of a kind."""
        entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [e for e in entries if what in (None, e["what"])]

    def close(self) -> None:
        os.close(self._file)
