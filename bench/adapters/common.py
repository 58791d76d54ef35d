"""What the adapters share: the command line, the count of handled jobs, the pace of a producer.

    python on_NAME.py ACTION URL '{"jobs": 100, "setting": 10}'

An adapter is a module with these functions; each runs in a process of its own.

    install(url)                  the schema, and a queue
    enqueue(url, jobs)            so many jobs, in the quickest way its documentation shows
    producer(url)                 a context manager that gives a call which enqueues one payload
    work(url, tally, setting)     a worker that calls tally.hit(payload["at"]) for each job, and
                                  ends soon after tally.full is set, or tally.on_full was called
    left(url)                     how many jobs are not finished

Nothing here needs more than the standard library: it runs in the peers' environment too.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

QUEUE = "bench"


def payload(at: float = 0.0) -> dict[str, Any]:
    """What a job is about; at: when it was enqueued, on the clock of time.monotonic."""
    return {"at": at, "image": "survey/2026/plate-000000001/image.png"}


class Tally:
    """Counts handled jobs. `hit` may be called from any thread.

    first: of how many at the beginning the waits stand apart.
    """

    def __init__(self, jobs: int, first: int = 0) -> None:
        self.jobs = jobs
        self.first = first
        self.full = threading.Event()
        self.on_full: Any = None  # called once, from the thread of the last hit
        self._lock = threading.Lock()
        self._count = 0
        # Between a tenth and nine tenths of the jobs the worker is neither starting nor running
        # dry; a system that takes hundreds at once would else be given the first for nothing.
        self._marks = {max(1, jobs // 10): 0.0, max(2, jobs * 9 // 10): 0.0}
        self._waits: list[float] = []

    def hit(self, at: float = 0.0) -> None:
        """One job was handed to its handler; at: when it was enqueued, 0 if that is not asked."""
        now = time.monotonic()
        with self._lock:
            self._count += 1
            if self._count in self._marks:
                self._marks[self._count] = now
            if self._count == 1:
                print("ready", flush=True)
            if at:
                self._waits.append(now - at)
            full = self._count == self.jobs
        if full:
            self.full.set()
            if self.on_full is not None:
                self.on_full()

    def result(self) -> dict[str, float]:
        """The jobs a second in the middle of the run, and the waits' p50 and p99 in seconds.

        The longest wait of the first ones is `first`, and in neither of the two.
        """
        if self._count < self.jobs:
            raise SystemExit(f"only {self._count} of {self.jobs} jobs were handled")
        (first, began), (last, ended) = sorted(self._marks.items())
        found = {"rate": (last - first) / max(ended - began, 1e-9)}
        if self._waits:
            found["first"] = max(self._waits[: self.first], default=0.0)
            waits = sorted(self._waits[self.first :])
            found["p50"] = waits[len(waits) // 2]
            found["p99"] = waits[min(len(waits) - 1, int(len(waits) * 0.99))]
        return found


def main(adapter: Any) -> None:
    """Do what the command line says, and print what came out as the last line."""
    action, url, text = sys.argv[1:]
    options = json.loads(text)
    result: dict[str, Any] = {}
    if action == "install":
        adapter.install(url)
    elif action == "enqueue":
        began = time.monotonic()
        adapter.enqueue(url, options["jobs"])
        result = {"seconds": time.monotonic() - began}
    elif action == "produce":
        with adapter.producer(url) as enqueue:
            _produce(enqueue, options["jobs"], options["rate"])
    elif action == "work":
        tally = Tally(options["jobs"], options.get("first", 0))
        adapter.work(url, tally, options["setting"])
        result = dict(tally.result())
    elif action == "left":
        result = {"left": adapter.left(url)}
    else:
        result = adapter.other(action, url, options)
    print(json.dumps(result), flush=True)


def _produce(enqueue: Any, jobs: int, rate: float) -> None:
    """Enqueue at a rate that does not depend on how long a call takes."""
    began = time.monotonic()
    for number in range(jobs):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        enqueue(payload(time.monotonic()))
