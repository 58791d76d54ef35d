"""How the synchronous worker runs several things at once: threads. `_aio` is its twin.

The two have the same names and cannot be one source: a task can be cancelled, a thread cannot; an
event loop has its own way to take signals, and to be told something by another thread.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import threading
from typing import TYPE_CHECKING, Self, TypeVar, Union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    T = TypeVar("T")
    # What calling something gives: here, the thing itself.
    Result = Union[T]  # noqa: UP007 - an alias that takes one argument

Event = threading.Event
Lock = threading.Lock


class Bell:
    """Wakes who waits for a connection to have something to say."""

    def __init__(self) -> None:
        self._heard, self._rope = socket.socketpair()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._heard.close()
            self._rope.close()

    def ring(self) -> None:
        """Wake who waits, from any thread, once and for all."""
        with self._lock, contextlib.suppress(OSError):  # nobody waits any more
            self._rope.send(b"!")

    def wait(self, fileno: int) -> None:
        """Wait until the connection can be read, or the bell is rung."""
        with selectors.DefaultSelector() as selector:
            selector.register(fileno, selectors.EVENT_READ)
            selector.register(self._heard, selectors.EVENT_READ)
            selector.select()


# How often the main thread looks whether a signal has come that did not wake it, in seconds: one
# that another thread was given, or that came just before it fell asleep.
HEED = 2.0


def wait_heeding(event: Event) -> None:
    """Wait for it, in the main thread, and take signals meanwhile."""
    while not event.wait(HEED):
        pass


def is_cancelled(_exc: BaseException) -> bool:
    """Whether it is the lane itself that is to end: a thread cannot be told so."""
    return False


class Lanes:
    """What runs at once. The first error of any is kept, and `on_error` called."""

    def __init__(self, on_error: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self.ended = Event()
        self._on_error = on_error
        self._lock = threading.Lock()
        self._running = 0

    def start(self, run: Callable[[], None], name: str) -> None:
        """Run it beside the others."""
        with self._lock:
            self._running += 1
        # Daemons: a handler that does not end must not keep the process from ending.
        threading.Thread(target=self._guard, args=(run,), name=name, daemon=True).start()

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as exc:  # noqa: BLE001 - the worker raises it
            self.error = self.error or exc
            self._on_error()
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self.ended.set()

    @property
    def running(self) -> bool:
        """Whether any of them still runs."""
        return self._running > 0

    def abandon(self) -> None:
        """Leave those that still run alone: a thread cannot be cancelled.

        Their batches are given back, so that their results are refused.
        """


@contextlib.contextmanager
def on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call it on SIGTERM and SIGINT, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGINT)

    def handle(*_: object) -> None:
        # In a thread: the one that was interrupted may hold the very lock that the call wants.
        threading.Thread(target=call, daemon=True).start()

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, before[number] or signal.SIG_DFL)
