"""The synchronous and the asynchronous half of the package behind one face, so that a test of one
is a test of both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING, Any

import psycopg

import pyjobs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[pyjobs.Batch, Any], Awaitable[object]]


class Blocking:
    """An asynchronous object to be used from synchronous code: what it returns is awaited."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self.target = target
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs = {
                key: given.target if isinstance(given, Blocking) else given
                for key, given in kwargs.items()
            }
            result = value(*args, **kwargs)
            if inspect.isawaitable(result):
                result = self._wait(result)
            if hasattr(result, "__aenter__"):
                return Blocking(result, self.runner)
            return result

        return call

    def __enter__(self) -> Any:
        entered = self._wait(self.target.__aenter__())
        return self if entered is self.target else Blocking(entered, self.runner)

    def __exit__(self, *exc: Any) -> Any:
        return self._wait(self.target.__aexit__(*exc))

    def _wait(self, awaitable: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self.runner.run(wait())


class Awaiting:
    """A synchronous connection with methods to be awaited: they are done when they return."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self.conn.execute(*args, **kwargs)

    async def commit(self) -> None:
        self.conn.commit()


def run_now(coroutine: Any) -> Any:
    """Run a coroutine that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


class SyncTwin:
    name = "sync"

    def client(self, conninfo: Any, **options: Any) -> Any:
        return pyjobs.Client(conninfo, **options)

    def connect(self, conninfo: str, **options: Any) -> Any:
        return psycopg.connect(conninfo, **{"prepare_threshold": None, **options})

    def worker(
        self, conninfo: str, handler: Handler, *queues: str, **options: Any
    ) -> RunningWorker:
        client = pyjobs.Client(conninfo, timeout=2)
        worker = pyjobs.Worker(
            client,
            lambda batch, conn: run_now(handler(batch, Awaiting(conn))),
            queues or ("default",),
            **options,
        )

        def run(after: Callable[[], None] | None = None, **how: Any) -> None:
            with client:
                worker.run(**how)
                if after:
                    after()
                    worker.run(**how)

        return RunningWorker(worker, run)

    async def wait_for(self, event: threading.Event) -> None:
        """For handlers: wait until it is set."""
        assert event.wait(30)

    async def until(self, condition: Callable[[], bool]) -> None:
        """For handlers: wait until it holds."""
        wait_until(condition, "what the handler waits for")

    def close(self) -> None:
        pass


class AsyncTwin:
    name = "async"

    def __init__(self) -> None:
        self.runner = asyncio.Runner()

    def client(self, conninfo: Any, **options: Any) -> Any:
        return Blocking(pyjobs.AsyncClient(conninfo, **options), self.runner)

    def connect(self, conninfo: str, **options: Any) -> Any:
        async def connect() -> Any:
            return await psycopg.AsyncConnection.connect(
                conninfo, **{"prepare_threshold": None, **options}
            )

        return Blocking(self.runner.run(connect()), self.runner)

    def worker(
        self, conninfo: str, handler: Handler, *queues: str, **options: Any
    ) -> RunningWorker:
        client = pyjobs.AsyncClient(conninfo, timeout=2)
        worker = pyjobs.AsyncWorker(client, handler, queues or ("default",), **options)

        async def work(after: Callable[[], None] | None = None, **how: Any) -> None:
            async with client:
                await worker.run(**how)
                if after:
                    after()
                    await worker.run(**how)

        return RunningWorker(worker, lambda **how: asyncio.run(work(**how)))

    async def wait_for(self, event: threading.Event) -> None:
        """For handlers: wait until it is set, and let others run."""
        async with asyncio.timeout(30):
            while not event.is_set():  # noqa: ASYNC110 - it is another thread's
                await asyncio.sleep(0.005)

    async def until(self, condition: Callable[[], bool]) -> None:
        """For handlers: wait until it holds, and let others run."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - another thread changes it
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self.runner.close()


class RunningWorker:
    """A worker that runs here (`finish`) or in a thread (`start`, `stop`)."""

    def __init__(self, worker: Any, run: Callable[..., None]) -> None:
        self.worker = worker
        self._run = run
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def finish(self, after: Callable[[], None] | None = None) -> None:
        """Run it here until it is idle; with ``after`` once more after that."""
        self._run(until_idle=True, after=after)

    def start(self) -> RunningWorker:
        def run() -> None:
            try:
                self._run()
            except BaseException as exc:  # noqa: BLE001 - raised by stop()
                self.error = exc

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return self

    def stop(self, timeout: float = 40) -> None:
        self.worker.stop()
        self.join(timeout)

    def join(self, timeout: float = 40) -> None:
        assert self._thread is not None
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the worker did not end"
        if self.error is not None:
            raise self.error
