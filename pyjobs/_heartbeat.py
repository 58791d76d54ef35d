"""The process that keeps a worker's leases alive: this file, run as a program.

A process, because no thread of the worker runs while a handler holds the interpreter's lock. It
has a connection of its own, is told by its standard input which leases to keep, and answers by
its standard output; both in lines of JSON. It writes nothing else, and ends when its input ends or
its parent is gone. It imports little: nothing of the package, and psycopg only when a lease is to
be extended, which a worker of quick jobs never asks for. To start with both took it 0.3 seconds of
processor time, at the moment when the worker wants to begin.

A worker that is stopped (SIGSTOP, a debugger) keeps nothing: it may never come back, and would
otherwise hold its batches for ever. So its state is looked at before every extension.

In:   {"conninfo", "lease", "beat", "parent"} once, in seconds; then
      {"keep": [[batch_id, lease_epoch], ...], "until": seconds or null, "age": seconds} and
      {"drop": [[batch_id, lease_epoch], ...]}
Out:  {"batch": [batch_id, lease_epoch], "cancelled": why} and {"log": event, ...}
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

# A lease so short, in seconds, that all is made ready before there is one.
SHORT = 20.0
# How often it looks whether its parent is still there, in seconds: while it keeps a lease, which
# must not outlive the worker, and while it keeps none.
LOOK = 1.0
LOOK_IDLE = 30.0
# How long it lets messages gather, in seconds. To be waked for each would cost more than the rest.
GATHER = 0.02
# The time-out is for a batch that is just being recorded in a transaction that waits: the others'
# leases must not wait with it. In the same statement, since behind a pooler a session has no
# settings; as an argument, so that it is set before the function is called.
EXTEND = b"""
with bound as materialized (select set_config('lock_timeout', '1s', true) as value)
select e.job_status::text
from bound
cross join lateral pyjobs.extend_lease(
    %s::bigint, %s::bigint, case when bound.value is not null then %s::interval end) e
"""
# The job goes on; with any other status the result is not wanted, or will not be.
GOES_ON = {"CREATED", "PENDING", "STARTED", "RETRY"}

Key = tuple[int, int]


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal or a debugger."""
    try:
        if sys.platform == "linux":
            # "pid (name) state ...", and the name may contain anything.
            state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2]
        elif os.name == "posix":
            command = ["ps", "-o", "state=", "-p", str(pid)]
            state = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        else:
            return False
    except OSError:
        return False
    return state.strip()[:1] in {"T", "t"}


class Heart:
    """The leases that are kept, and the connection by which they are."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.conninfo: str = setup["conninfo"]
        self.lease: str = f"{setup['lease']} seconds"
        self.beat: float = setup["beat"]
        self.parent: int = setup["parent"]
        self.lock = threading.Lock()
        self.due: dict[Key, float] = {}
        self.until: dict[Key, float] = {}
        self.told: set[Key] = set()
        self.awake_at = 0.0  # when the one who extends looks again by itself
        self.changed = threading.Event()
        self.conn: psycopg.Connection[Any] | None = None

    def listen(self) -> None:
        """Do what the worker says, until it says nothing more."""
        rest = b""
        while some := os.read(sys.stdin.fileno(), 1 << 16):
            *lines, rest = (rest + some).split(b"\n")
            for line in lines:
                self.heed(json.loads(line))
            time.sleep(GATHER)
        os._exit(0)  # the other thread may be waiting for a server that does not answer

    def heed(self, message: dict[str, Any]) -> None:
        """Do what one message says."""
        now = time.monotonic()
        with self.lock:
            for pair in message.get("drop", ()):
                self.forget(tuple(pair))
            if "keep" not in message:
                return
            due = now + self.beat * random.uniform(0.7, 1.0)  # noqa: S311 - not for secrets
            due -= message.get("age", 0.0)
            until = message["until"]
            for pair in message["keep"]:
                key = tuple(pair)
                # One that is kept already is not put off.
                self.due.setdefault(key, due)
                if until is not None:
                    self.until[key] = now + until
            early = min(due, now + LOOK if until is None else now + until) < self.awake_at
        if early:
            self.changed.set()

    def forget(self, key: Key) -> None:
        """Keep this lease no longer."""
        self.due.pop(key, None)
        self.until.pop(key, None)
        self.told.discard(key)

    def run(self) -> None:
        """Extend every lease when it is due, as long as the parent is there."""
        while os.getppid() == self.parent:
            now = time.monotonic()
            with self.lock:
                for key in [key for key, end in self.until.items() if end <= now]:
                    self.forget(key)
                    say(batch=key, cancelled="time limit exceeded, the lease is kept no longer")
                due = sorted((at, key) for key, at in self.due.items() if at <= now)
                if not due or is_stopped(self.parent):
                    # Now and then awake, to see whether the parent is still there.
                    soon = min([*self.due.values(), *self.until.values()], default=now + LOOK_IDLE)
                    pause = max(0.05, soon - now)
                    if self.due:
                        pause = min(LOOK, pause)
                    self.awake_at = now + pause
                    due = []
            if due:
                self.extend([key for _, key in due])
                continue
            self.changed.wait(pause)
            self.changed.clear()

    def extend(self, keys: list[Key]) -> None:
        """Extend these leases; whatever goes wrong, the next beat tries again."""
        import psycopg  # noqa: PLC0415 - see above

        for key in keys:
            if is_stopped(self.parent):
                return
            with self.lock:
                if key not in self.due:
                    continue
                self.due[key] = time.monotonic() + self.beat * random.uniform(0.7, 1.0)  # noqa: S311
            try:
                self.extend_one(key)
            except psycopg.OperationalError as exc:
                if exc.sqlstate == "55P03":  # lock_not_available: it is being recorded
                    continue
                say(log="heartbeat has no connection, trying again", error=str(exc).strip())
                self.disconnect()
                with self.lock:
                    soon = time.monotonic() + min(1.0, self.beat / 3)
                    for other in self.due:
                        self.due[other] = min(self.due[other], soon)
                self.changed.wait(min(1.0, self.beat / 3))
                return

    def extend_one(self, key: Key) -> None:
        """Extend one lease; tell the worker if its result is not wanted."""
        import psycopg  # noqa: PLC0415 - see above

        if self.conn is None or self.conn.closed:
            self.conn = psycopg.connect(self.conninfo, autocommit=True, prepare_threshold=None)
        try:
            row = self.conn.execute(EXTEND, (*key, self.lease)).fetchone()
        except psycopg.OperationalError:
            raise
        except psycopg.Error as exc:
            # Stale, recorded, purged: it is not ours to keep.
            if (exc.sqlstate or "").startswith("PJ"):
                with self.lock:
                    known = key in self.due
                    self.forget(key)
                if known:
                    say(batch=key, cancelled=f"{exc.sqlstate}: {exc.diag.message_primary}")
            else:
                say(log="heartbeat cannot extend a lease", batch=key, error=str(exc).strip())
            return
        status = row[0] if row else ""
        with self.lock:
            news = key in self.due and status not in GOES_ON and key not in self.told
            if news:
                self.told.add(key)
        if news:
            say(batch=key, cancelled=status)

    def disconnect(self) -> None:
        """Forget the connection."""
        if self.conn is not None:
            self.conn.close()
        self.conn = None


def say(**message: Any) -> None:
    """Tell the worker."""
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(0)  # nobody is there to hear


def main() -> None:
    """Run until the worker is gone."""
    # These reach the whole group of processes; the leases of a worker that drains are still kept.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    setup = b""
    while not setup.endswith(b"\n"):
        if not (some := os.read(sys.stdin.fileno(), 1)):
            return
        setup += some
    told = json.loads(setup)
    heart = Heart(told)
    threading.Thread(target=heart.listen, daemon=True).start()
    if told["lease"] < SHORT:
        import psycopg  # noqa: F401, PLC0415 - see above
    heart.run()
    os._exit(0)


if __name__ == "__main__":
    main()
