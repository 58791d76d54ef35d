"""Handlers that a worker must outlive, or at least must not lose anything by.

    pyjobs worker tests.support.hostile_handlers:handle --queue q

The item says which; "good" does no harm. Each writes its row before.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyjobs


def handle(batch: pyjobs.Batch, conn: Any) -> None:
    for item in batch.items:
        conn.execute(
            "insert into public.result values (%s::jsonb, %s)", [json.dumps(item), batch.attempt]
        )
        globals()[f"do_{item}"]()


def do_good() -> None:
    pass


def do_exit() -> None:
    os._exit(3)


def do_abort() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def do_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def do_fork() -> None:
    """The child comes back from the handler, as if it were the worker."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 70


def do_fork_and_raise() -> None:
    child = os.fork()
    if not child:
        raise RuntimeError("in the child")
    os.waitpid(child, 0)


def do_fork_and_leave() -> None:
    child = os.fork()
    if not child:
        sys.exit(1)
    os.waitpid(child, 0)


def do_shout() -> None:
    """A gigabyte to standard output, and one to standard error."""
    block = b"\x1b[31m" + b"x" * (1 << 20)
    for _ in range(1 << 10):
        os.write(1, block)
        os.write(2, block)


def do_close() -> None:
    """No more output, and the worker has lines to log."""
    sys.stdout.close()
    sys.stderr.close()


def do_devour() -> None:
    """More memory than there is, under a limit of one's own."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), limits[1]))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def do_chdir() -> None:
    os.chdir("/")


def do_thread() -> None:
    thread = threading.Thread(target=sys.exit, args=(1,))
    thread.start()
    thread.join()


def do_environ() -> None:
    os.environ.clear()
