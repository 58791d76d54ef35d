"""The worker's side of the heartbeat process: starts it, and tells it which leases to keep."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from pyjobs import _heartbeat

if TYPE_CHECKING:
    from collections.abc import Sequence

    import structlog

    from pyjobs._batch import Batch

Key = tuple[int, int]


class LeaseKeeper:
    """Keeps leases alive from a process of its own, and marks batches that are not wanted any more.

    The same for both workers: what it does is a write to a pipe, and a thread that reads another.
    Both begin with the first lease, unless leases are short: a worker that only waits has none.
    The process is told of many leases at once where many are claimed or recorded at once.
    """

    def __init__(
        self,
        conninfo: str,
        lease: float,
        time_limit: float | None,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._setup = {
            "conninfo": conninfo,
            "lease": lease,
            # Often enough that two beats may be missed, and that a cancel is soon known.
            "beat": min(lease / 3, 10.0),
            "parent": os.getpid(),
        }
        self._time_limit = time_limit
        self._log = log
        self._lock = threading.Lock()
        self._kept: dict[Key, Batch] = {}
        self._limited: set[Key] = set()
        self._closing = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        if lease < _heartbeat.SHORT:
            self.keep([])  # on a busy machine the lease might be over before the process is there

    def keep(self, batches: Sequence[Batch], age: float = 0.0) -> None:
        """Keep the leases of these batches alive from now on; they are so many seconds old."""
        with self._lock:
            if self._closing.is_set():
                return  # an abandoned handler's batch: it has been given back
            for batch in batches:
                self._kept[batch.key] = batch
            if self._process is None:
                self._process = self._start()
                self._reader = threading.Thread(
                    target=self._read, args=(self._process,), name="pyjobs-heartbeat", daemon=True
                )
                self._reader.start()
            self._tell(keep=[batch.key for batch in batches], until=None, age=age)

    def limit(self, batch: Batch) -> None:
        """Keep it for the time limit from now on, and no longer."""
        if self._time_limit is None:
            return
        with self._lock:
            if batch.key in self._kept:
                self._limited.add(batch.key)
                self._tell(keep=[batch.key], until=self._time_limit)

    def drop(self, batches: Sequence[Batch]) -> None:
        """Keep them no longer."""
        with self._lock:
            kept = [batch.key for batch in batches if self._kept.pop(batch.key, None) is not None]
            self._limited.difference_update(kept)
            if kept:
                self._tell(drop=kept)

    def close(self) -> None:
        """End the process. The leases run out by themselves, if they were not given back."""
        self._closing.set()
        with self._lock:
            if self._process is not None:
                self._end(self._process)
        if self._reader is not None:
            self._reader.join(5)

    def _start(self) -> subprocess.Popen[str]:
        # The same modules as here, however this process found them.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(
            # By its path, since "-m" would import the package; -P: nothing in its folder is a
            # module of another's.
            [sys.executable, "-P", _heartbeat.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=env,
        )
        self._write(process, self._setup)
        return process

    @staticmethod
    def _write(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        # Where it has died, the reader starts another, and tells it everything.
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _tell(self, **message: Any) -> None:
        if self._process is not None:
            self._write(self._process, message)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # what is not yet written is of no use any more
                process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _read(self, process: subprocess.Popen[str]) -> None:
        while True:
            assert process.stdout is not None  # noqa: S101 - it was asked for
            with process.stdout as lines:
                for line in lines:
                    self._hear(json.loads(line))
            if self._closing.is_set():
                return
            self._log.error("heartbeat process ended, starting another", code=process.poll())
            if self._closing.wait(0.5):
                return
            with self._lock:
                if self._closing.is_set():
                    return
                self._end(process)
                process = self._process = self._start()
                free = [key for key in self._kept if key not in self._limited]
                for keys, limit in ((free, None), (list(self._limited), self._time_limit)):
                    if keys:
                        self._tell(keep=keys, until=limit)

    def _hear(self, message: dict[str, Any]) -> None:
        key = tuple(message.pop("batch", ()))
        batch = self._kept.get(key)
        event = message.pop("log", None)
        if event is not None:
            self._log.warning(event, **({"batch": key[0]} if key else {}), **message)
        elif batch is not None:
            batch.cancel(message["cancelled"])
            tell = self._log.info if batch.job_cancelled else self._log.warning
            tell(
                "batch is not wanted any more",
                job=batch.job_id,
                batch=batch.batch_id,
                epoch=batch.lease_epoch,
                reason=message["cancelled"],
            )
