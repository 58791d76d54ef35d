"""The worker processes: started, listened to, and treated badly.

A worker tells what it does in lines of JSON on its standard output (`pyjobs.demo.handlers.tell`),
and ends by itself when its standard input is closed, so that none outlives the demo.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyjobs.demo.display import WorkerView

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Told:
    """What a worker said of where it is."""

    worker: str
    what: str  # tile, wrote, bad, step
    job_id: int
    batch_id: int
    lease_epoch: int
    text: str
    rows: int = 0
    backend: int = 0  # the process id of the server's side of its transaction


class Ears:
    """Everything the workers have said, in order; threads wait here for what they look for."""

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._news = threading.Condition()

    def hear(self, told: Told) -> None:
        with self._news:
            self._told.append(told)
            self._news.notify_all()

    def now(self) -> int:
        """The position after all that was said so far."""
        with self._news:
            return len(self._told)

    def since(self, position: int) -> list[Told]:
        with self._news:
            return self._told[position:]

    def wait_for(self, wanted: Callable[[Told], bool], position: int, deadline: float) -> Told:
        """The first that is wanted among what was said after `position`; raises at the deadline."""
        with self._news:
            while True:
                for told in self._told[position:]:
                    position += 1
                    if wanted(told):
                        return told
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise DemoError("no worker got to where it was waited for")
                self._news.wait(remaining)


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, name: str, database_url: str, queue: str, log: Path, ears: Ears) -> None:
        self.name = name
        self.log = log
        self._ears = ears
        self._state = "running"
        self._doing = "starting"
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pyjobs.demo.worker", name, queue],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                # One thread each: four of them share what cores there are.
                env=os.environ | {"PYJOBS_DATABASE_URL": database_url, "OMP_NUM_THREADS": "1"},
            )
        self._listener = threading.Thread(target=self._listen, name=f"hear-{name}", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def view(self) -> WorkerView:
        if self._state == "running" and self._process.poll() is not None:
            self._state = "ended"
        return WorkerView(self.name, self.pid, self._state, self._doing)

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  (it is a pipe)
        for line in self._process.stdout:
            told = parse(self.name, line)
            if told is not None:
                self._doing = f"batch {told.batch_id}, lease {told.lease_epoch}: {told.text}"
                self._ears.hear(told)

    def suspend(self) -> bool:
        """SIGSTOP, and wait until the process really stands still. False: it has ended."""
        self._process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, os.WUNTRACED)
            return os.WIFSTOPPED(status)
        return False

    def mark_suspended(self) -> None:
        self._state = "suspended"

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        if self._state == "suspended":
            self._state = "running"

    def kill(self) -> None:
        """SIGKILL: kill -9."""
        self._process.kill()
        self._process.wait()
        self._state, self._doing = "killed", "by kill -9; " + self._doing

    @property
    def has_ended_early(self) -> bool:
        """It ended although nobody ended it."""
        return self._state in {"running", "ended"} and self._process.poll() is not None

    def last_words(self, lines: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, patience: float = 10.0) -> None:
        """Let it drain and end; kill it where it does not."""
        if self._process.poll() is None:
            # A suspended process takes no notice of anything until it goes on.
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._listener.join()  # its pipe ends with the process
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def parse(worker: str, line: str) -> Told | None:
    """A line of a worker; None for one that is no message (a library's print)."""
    try:
        message: dict[str, Any] = json.loads(line)
        return Told(worker=worker, **message)
    except (ValueError, TypeError):
        return None
