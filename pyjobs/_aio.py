"""How the asynchronous worker runs several things at once: tasks. `_threads` is its twin.

The two have the same names and cannot be one source: a task can be cancelled, a thread cannot; an
event loop has its own way to take signals, and to be told something by another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    T = TypeVar("T")
    # What calling something gives: here, something to await.
    Result = Awaitable[T]

Lock = asyncio.Lock


class Event:
    """An event that any thread may set."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flag = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._flag

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._flag = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._flag:
            self._event.set()

    def clear(self) -> None:
        """Unset it."""
        self._flag = False
        self._event.clear()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as threading's
        """Wait until it is set, at most `timeout` seconds; say whether it is."""
        self._loop = asyncio.get_running_loop()
        if not self._flag:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._event.wait()
        return self._flag


class Bell:
    """Wakes who waits for a connection to have something to say."""

    def __init__(self) -> None:
        self._rung = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ring(self) -> None:
        """Wake who waits, from any thread, once and for all."""
        self._rung.set()

    async def wait(self, fileno: int) -> None:
        """Wait until the connection can be read, or the bell is rung."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        waits = [asyncio.create_task(event.wait()) for event in (readable, self._rung)]
        loop.add_reader(fileno, readable.set)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(fileno)
            for wait in waits:
                wait.cancel()


async def wait_heeding(event: Event) -> None:
    """Wait for it; the event loop takes signals meanwhile."""
    await event.wait()


def is_cancelled(exc: BaseException) -> bool:
    """Whether it is the lane itself that is to end, and not something that a handler raised."""
    if isinstance(exc, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(exc, GeneratorExit)


class Lanes:
    """What runs at once. The first error of any is kept, and `on_error` called."""

    def __init__(self, on_error: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self.ended = Event()
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Run it beside the others."""
        task = asyncio.create_task(self._guard(run), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    async def _guard(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await run()
        except Exception as exc:  # noqa: BLE001 - the worker raises it
            self.error = self.error or exc
            self._on_error()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self.ended.set()

    @property
    def running(self) -> bool:
        """Whether any of them still runs."""
        return bool(self._tasks)

    async def abandon(self) -> None:
        """Cancel those that still run, and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call it on SIGTERM and SIGINT, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.getsignal(number) for number in signals}
        for number in signals:
            try:
                loop.add_signal_handler(number, call)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(call))
        yield
    finally:
        for number in signals:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, before[number] or signal.SIG_DFL)
