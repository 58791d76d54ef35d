"""What a worker has worked leaves nothing behind, however long it goes on.

Each test runs with the synchronous and the asynchronous worker. The interpreter counts its objects
in the middle of a run; bench/workloads/memory.py looks at the process.

Broken by hand, each seen red: the leases that the heartbeat keeps, those that have a time limit,
and the keys of what has left the worker, each kept for ever.
"""

from __future__ import annotations

import gc
import itertools
import logging
import sys
from datetime import timedelta
from itertools import pairwise

import pytest

import pyjobs

#: The objects are counted each time that so many jobs have been worked, and so often.
STRETCH = 200
STRETCHES = 4


@pytest.fixture
def growths(twin, dsn, db, caplog):
    """``growths(end, options)``: by how many objects it grew in each stretch of a run.

    A job's handler ends with `end(batch)`.
    """
    caplog.set_level(logging.CRITICAL, logger="pyjobs.worker")  # what it says is kept for a test

    def work(end, **options):
        number = itertools.count()
        counts = []

        async def handler(batch, conn):
            if next(number) % STRETCH == 0:
                gc.collect()  # that also empties the interpreter's free lists
                counts.append(sys.getallocatedblocks())
            end(batch)

        with pyjobs.Client(dsn) as client:
            client.enqueue_jobs("q", [{}] * (STRETCH * STRETCHES + 1), max_attempts=1)
        twin.worker(dsn, handler, "q", time_limit=60, **options).finish()
        assert len(counts) == STRETCHES + 1
        return [late - early for early, late in pairwise(counts)]

    return work


def is_kept(growth):
    """Whether something of each job is still there. A stretch may have opened a connection."""
    return min(growth) > STRETCH / 2


@pytest.mark.parametrize("shape", [{"concurrency": 3}, {"max_jobs": 20, "concurrency": 2}], ids=str)
def test_what_was_worked_leaves_nothing_behind(growths, shape):
    def end(batch):
        batch.count(seen=1)
        batch.fail(0, "odd")

    assert not is_kept(growths(end, **shape))


def test_what_failed_leaves_nothing_behind(growths):
    def end(batch):
        raise RuntimeError("no")

    assert not is_kept(growths(end, retry_in=lambda _attempt: timedelta(0)))
