"""The worker: claims batches, hands them to a handler, and records what became of them."""

from __future__ import annotations

import os
import random
import socket
from collections import deque
from contextlib import suppress
from datetime import timedelta
from functools import partial
from math import ceil, inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from pyjobs import _aio
from pyjobs._async.lazy import AsyncLazyConnection
from pyjobs._batch import Batch, plain_text
from pyjobs._keeper import Key, LeaseKeeper
from pyjobs._log import get_logger, tells_info
from pyjobs._pooling import seconds, to_connect_again
from pyjobs.errors import (
    AlreadyRecorded,
    Error,
    NotFound,
    StaleLease,
    is_connection_lost,
    is_passing,
)
from pyjobs.models import BatchOutcome, Claim, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import structlog

    from pyjobs._async.client import AsyncClient

    AsyncHandler = Callable[[Batch, AsyncLazyConnection], _aio.Result[object]]

__all__ = ["AsyncWorker"]

T = TypeVar("T")

# How often a handler is called under one lease when its transaction is lost without its fault.
TRIES = 5
# The exit status of a process that a handler forked, and that returned from the handler.
CHILD_CAME_BACK = 70
# The longest pause between two tries to reach a server that is away, in seconds.
LONGEST_PAUSE = 10.0
# The shortest between two questions for work, in seconds; it doubles while there is none.
SHORTEST_POLL = 0.05
# The longest, where the caller did not say: of a worker that is not woken, and of one that is.
POLL = 1.0
POLL_LISTENING = 5.0
# And of one that is woken whatever the caller said: the database wakes only whoever asked for work
# within the last minute.
POLL_HEARD = 30.0
# The next set of jobs is claimed ahead where the last one was worked off in that many seconds.
AHEAD = 1.0
# How many batches are recorded in one call, at most.
MOST_TOGETHER = 1000
# The SQLSTATE of a lease that is lost.
LATE = "PJ001"


def back_off(attempt: int) -> timedelta:
    """How long a batch waits after its nth attempt: about 1 s, 2 s, 4 s, at most 5 minutes."""
    longest = min(300.0, 2.0 ** min(attempt - 1, 16))
    return timedelta(seconds=longest * random.uniform(0.5, 1.0))  # noqa: S311 - not for secrets


def _each(results: list[dict[str, Any]], name: str, none: T) -> list[T] | None:
    """What each result has of this, where any has."""
    if any(result[name] for result in results):
        return [result[name] or none for result in results]
    return None


class AsyncWorker:
    """Works batches until it is stopped.

    `handler(batch, conn)` does the work of one batch. It reads `batch.items` and `batch.params`,
    says `batch.fail`, `batch.count` and `batch.emit`, and writes rows of its own through `conn`:
    they are committed in the transaction that records the batch, or not at all. The transaction
    opens when `conn` is first used. The handler may be called again for the same batch (a lost
    connection, a deadlock, a worker that died), so what it does elsewhere should bear repeating.
    If it raises, its rows are rolled back and the batch is given back with the error, which costs
    one of the job's attempts, to be tried again after a pause that grows. That goes for whatever it
    raises, SystemExit and KeyboardInterrupt too. What it sets in the session of `conn` should be
    for its transaction alone (`set local`): the connection goes back to the pool.

    Leases are kept alive from a process of its own, so that a handler may hold the interpreter's
    lock; but not while the worker is stopped (SIGSTOP), nor longer than its `time_limit`. A result
    that comes too late is refused by the database together with its rows, and reported.

    A server that is away is waited for. On SIGTERM and SIGINT the worker takes no more work,
    finishes what it has begun within `drain_timeout`, and gives back the rest, which then costs no
    attempt. A second signal gives it back at once.

    With `max_jobs` the next set is claimed while one is worked, if the last one took less than a
    second: then the worker holds, beside what its lanes work, up to twice `max_jobs` batches. Their
    leases count from the claim and are kept alive as all others. What waits and is not wanted any
    more is not handed to the handler, and what waits at a stop is given back, at no attempt. A
    handler that holds the interpreter's lock (of AsyncWorker: that blocks the event loop) at the
    moment when a set is claimed ahead, and for longer than the lease, costs that set its leases:
    nobody was told of them yet. What is left of the set is given back, what another took by then
    has spent an attempt. For such handlers leave `max_jobs` and `concurrency` at 1, and start more
    processes.
    """

    def __init__(
        self,
        client: AsyncClient,
        handler: AsyncHandler,
        queues: Sequence[str] = ("default",),
        *,
        max_batches: int = 1,
        max_jobs: int = 1,
        concurrency: int = 1,
        lease: timedelta | float = 60.0,
        name: str | None = None,
        poll: timedelta | float | None = None,
        drain_timeout: timedelta | float = 30.0,
        time_limit: timedelta | float | None = None,
        retry_in: Callable[[int], timedelta] = back_off,
        reap_every: timedelta | float | None = 30.0,
        listen: bool = False,
        heartbeat: bool = True,
        signals: bool = True,
    ) -> None:
        """Make a worker; `run` starts it. Durations are timedeltas or seconds.

        queues         the queues it serves
        max_batches    how many batches it leases at once, for one lane, all of one job; they are
                       worked one after the other
        max_jobs       for many small jobs: of how many it leases a batch at once, for all lanes,
                       and of as many ahead while they go quickly. What comes of handlers that
                       neither used `conn` nor emitted is then recorded together with what else
                       is finished, as soon as the last such call is back
        concurrency    how many batches are worked at once, each in a lane of its own
        lease          how long a batch stays leased when the worker is gone
        name           as `active_workers` shows it; by default made of host and process
        poll           the longest pause between two questions for work while there is none; by
                       default 1 second, and 5 while it listens. While it listens never more than
                       30, so that the database goes on waking it
        drain_timeout  how long a stopped worker waits for its handlers
        time_limit     how long a lease is kept for a handler, from its call on; None: for ever
        retry_in       the pause after the nth attempt at a batch failed
        reap_every     how often it takes back expired leases of others, jittered; None: never
        listen         be woken when work comes to an empty queue, by a session of its own. It saves
                       waiting for the next poll; behind a transaction-pooling proxy leave it off
        heartbeat      keep leases alive; False for short tests alone
        signals        drain on SIGTERM and SIGINT, where `run` is called in the main thread
        """
        if isinstance(queues, str):
            raise TypeError(f"queues is a list of names, not the string {queues!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1, not {concurrency}")
        if max_jobs < 1:
            raise ValueError(f"max_jobs is at least 1, not {max_jobs}")
        if max_jobs > 1 and max_batches > 1:
            raise ValueError("max_batches is of one job, max_jobs of many: give one of them")
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{os.urandom(2).hex()}"
        self._client = client
        self._handler = handler
        self._queues = list(queues)
        self._max_batches = max_batches
        self._max_jobs = max_jobs
        self._concurrency = concurrency
        self._lease = timedelta(seconds=seconds(lease))
        self._poll = None if poll is None else seconds(poll)
        self._drain_timeout = seconds(drain_timeout)
        self._time_limit = None if time_limit is None else seconds(time_limit)
        self._retry_in = retry_in
        self._reap_every = None if reap_every is None else seconds(reap_every)
        self._listens = listen
        self._beats = heartbeat
        self._takes_signals = signals
        self._log = get_logger("pyjobs.worker").bind(worker=self.name)
        self._renew()

    def _renew(self) -> None:
        self._abandoned = False
        self._away = False  # the server, as was found out while stopping
        self._keeper: LeaseKeeper | None = None
        self._held: dict[Key, Batch] = {}  # claimed, and neither recorded nor given back
        self._finished = 0  # how many batches have left _held
        self._until_idle = False
        self._claimed: deque[Batch] = deque()  # of many jobs, and not yet in a lane's hands
        self._some_claimed = _aio.Event()
        self._begun = 0  # how many of those have been taken by a lane
        self._low = -1  # when so few are left, the next ones are claimed; -1: when one is missing
        self._is_low = _aio.Event()
        self._finals: deque[tuple[Batch, float]] = deque()  # finished, to be recorded together
        self._some_finals = _aio.Event()
        self._at_work: set[int] = set()  # lanes
        self._claiming = _aio.Lock()
        self._hears = False  # whether LISTEN stands
        self._bell: _aio.Bell | None = None
        self._dues: set[float] = set()  # when batches that failed may be claimed again
        self._wake = _aio.Event()
        self._stopping = _aio.Event()
        self._lanes = _aio.Lanes(self.stop)

    # Life

    async def run(self, *, until_idle: bool = False) -> None:
        """Work until `stop` or a signal; with `until_idle` until there is nothing to claim.

        Raises what a lane could not go on after: a schema that is not there, a missing right.
        """
        if self._lanes.running:
            raise RuntimeError("this worker runs already, or handlers of its last run still do")
        if self._abandoned:
            self._renew()
        lanes = self._lanes
        self._until_idle = until_idle
        self._log.info("worker starts", queues=self._queues, concurrency=self._concurrency)
        try:
            if self._takes_signals:
                with _aio.on_signals(self._on_signal):
                    await self._live(lanes)
            else:
                await self._live(lanes)
        finally:
            # What an abandoned handler still sees must stay as it is: stopped.
            self._abandoned = lanes.running
            if not self._abandoned:
                self._renew()
        if lanes.error is not None:
            raise lanes.error
        self._log.info("worker has ended")

    def stop(self) -> None:
        """Take no more work, and let `run` end. May be called from any thread."""
        self._stopping.set()
        for event in (self._wake, self._is_low, self._some_claimed):
            event.set()
        if (bell := self._bell) is not None:
            bell.ring()

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._log.warning("second signal: giving everything back now")
            self._lanes.ended.set()
        else:
            self._log.info("signal: draining", batches=len(self._held))
            self.stop()

    async def _live(self, lanes: _aio.Lanes) -> None:
        conninfo = await self._persist(self._prepare)
        if conninfo is None:
            return
        if self._beats:
            self._keeper = LeaseKeeper(
                conninfo, self._lease.total_seconds(), self._time_limit, self._log
            )
        try:
            self._at_work.update(range(self._concurrency))
            for number in range(self._concurrency):
                lanes.start(partial(self._lane, number), f"pyjobs-{number}")
            if self._max_jobs > 1:
                lanes.start(self._claim_sets, "pyjobs-claim")
                lanes.start(self._record_finals, "pyjobs-record")
            if self._reap_every is not None and not self._until_idle:
                lanes.start(self._reap_now_and_then, "pyjobs-reap")
            if self._listens:
                lanes.start(lambda: self._listen(conninfo), "pyjobs-listen")
            await _aio.wait_heeding(self._stopping)
            await lanes.ended.wait(self._drain_timeout)
        finally:
            self.stop()
            if lanes.running:
                self._log.warning("handlers did not end in time", batches=len(self._held))
                await lanes.abandon()
            for batch in list(self._held.values()):
                await self._give_back(batch)
            if self._keeper is not None:
                self._keeper.close()

    async def _prepare(self) -> str:
        """Make room in the client's pool, and find out how its connections are made."""
        await self._client.reserve(2 * self._concurrency + 2)
        async with self._client.connection() as conn:
            pool = self._client.pool
            return to_connect_again(conn.info, pool.conninfo, pool.kwargs)

    async def _persist(self, call: Callable[..., _aio.Result[T]], *args: Any) -> T | None:
        """Call it until it succeeds: the server may be away for a while. None when stopped."""
        try:
            return await call(*args)
        except psycopg.Error as exc:
            if not is_passing(exc):
                raise
        retrying = AsyncRetrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE),
            stop=lambda _: self._stopping.is_set(),
            sleep=self._pause,
            before_sleep=self._tell_outage,
            reraise=True,
        )
        try:
            return await retrying(call, *args)
        except psycopg.Error as exc:
            if is_passing(exc) and self._stopping.is_set():
                return None
            raise

    async def _pause(self, duration: float) -> None:
        await self._stopping.wait(duration)

    async def _bounded(self, call: Callable[..., _aio.Result[T]], *args: Any) -> T:
        """Call it in a transaction that does not wait long for somebody else's locks."""
        async with self._client.transaction() as conn:
            await conn.execute("set local lock_timeout = '2s'")
            return await call(*args, conn=conn)

    def _tell_outage(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._log.warning(
            "server is away or busy, trying again",
            error=str(error).strip(),
            attempt=state.attempt_number,
        )

    # Claiming

    async def _lane(self, number: int) -> None:
        try:
            if self._max_jobs > 1:
                while batch := await self._take():
                    await self._work_or_give_back(batch)
            else:
                while batches := await self._next():
                    for batch in batches:
                        await self._work_or_give_back(batch)
        finally:
            self._at_work.discard(number)
            self._some_finals.set()

    async def _work_or_give_back(self, batch: Batch) -> None:
        # Who waited for its turn may have lost its lease, or its job been cancelled, meanwhile.
        if self._stopping.is_set() or batch.cancelled:
            await self._give_back(batch)
        else:
            await self._work(batch)

    async def _next(self) -> list[Batch]:
        """Lease the next batches, waiting for some; none when stopped.

        One lane at a time asks, so that many idle ones do not ask more often than one.
        """
        async with self._claiming:
            return await self._ask(
                partial(
                    self._client.tuples,
                    Claim,
                    "claim_next_job",
                    worker=self.name,
                    queues=self._queues,
                    max_batches=self._max_batches,
                    lease=self._lease,
                )
            )

    async def _ask(self, claim: Callable[[], _aio.Result[list[Sequence[Any]]]]) -> list[Batch]:
        """Claim, again and again until there is something; none when stopped."""
        pause = SHORTEST_POLL
        while True:
            self._wake.clear()
            if self._stopping.is_set():
                return []
            finished = self._finished
            now = monotonic()
            self._dues.difference_update([due for due in list(self._dues) if due <= now])
            answer = await self._persist(self._timed, claim)
            if answer is None:
                return []
            asked, rows = answer
            if rows:
                batches = self._hold([Batch.of(row) for row in rows], asked)
                if monotonic() - asked < self._lease.total_seconds():
                    return batches
                # A handler kept us from hearing the answer: they may be another's by now.
                for batch in batches:
                    await self._give_back(batch)
                continue
            idle = not self._held and self._finished == finished
            if self._until_idle and idle and not await self._reap():
                self.stop()
                return []
            pause = await self._rest(pause)

    async def _timed(self, call: Callable[[], _aio.Result[T]]) -> tuple[float, T]:
        """What it returns, and when it was called."""
        at = monotonic()
        return at, await call()

    async def _rest(self, pause: float) -> float:
        """Wait until it is time to ask again, or somebody wakes us; return the next pause."""
        longest = self._poll
        hears = self._hears  # it may begin, or end, while we wait
        if longest is None:
            longest = POLL_LISTENING if hears else POLL
        if hears:
            longest = min(longest, POLL_HEARD)
            # Whatever comes is told, but for what was on its way when the last answer was given and
            # nobody yet knew that we wait: so ask soon once more, and then rarely.
            pause = max(pause, min(POLL, longest))
        # Jittered, so that many workers do not ask at the same moment.
        nap = min(pause, longest) * random.uniform(0.5, 1.5)  # noqa: S311 - not for secrets
        # What came due after the last question is not yet asked for.
        left = min(self._dues, default=inf) - monotonic()
        await self._wake.wait(max(0.0, min(left, nap)))
        return longest if hears else min(2 * pause, longest)

    # Claiming from many jobs

    async def _claim_sets(self) -> None:
        """Lease sets of batches for the lanes, one ahead of them while they are quick."""
        claim = partial(
            self._client.tuples,
            Claim,
            "claim_jobs",
            worker=self.name,
            queues=self._queues,
            max_jobs=self._max_jobs,
            lease=self._lease,
        )
        begun, since = 0, monotonic()
        try:
            while not self._stopping.is_set():
                await self._is_low.wait()
                self._is_low.clear()
                if len(self._claimed) > max(self._low, 0):
                    continue
                batches = await self._ask(claim)
                now = monotonic()
                # How long a set takes, as the last ones went.
                took = (now - since) / max(1, self._begun - begun) * self._max_jobs
                self._low = self._max_jobs - 1 if took < AHEAD else -1
                begun, since = self._begun, now
                self._claimed.extend(batches)
                self._some_claimed.set()
        finally:
            self._some_claimed.set()
            with suppress(IndexError):
                while True:
                    await self._give_back(self._claimed.popleft())

    async def _take(self) -> Batch | None:
        """The next batch of those that are claimed, waiting for one; None when stopped."""
        while not self._stopping.is_set():
            try:
                batch = self._claimed.popleft()
            except IndexError:
                # One lane at a time waits: for one batch, one is woken.
                async with self._claiming:
                    self._some_claimed.clear()
                    if not self._claimed and not self._stopping.is_set():
                        # Not before it is its turn: one claim answers all that was said so far.
                        self._is_low.set()
                        await self._some_claimed.wait()
                continue
            self._begun += 1
            if len(self._claimed) <= self._low and not self._is_low.is_set():
                self._is_low.set()
            return batch
        return None

    def _hold(self, batches: list[Batch], since: float | None = None) -> list[Batch]:
        """They are ours, by a claim that was asked for then, or again."""
        for batch in batches:
            self._held[batch.key] = batch
        if self._keeper is not None:
            self._keeper.keep(batches, 0.0 if since is None else monotonic() - since)
        return batches

    def _let_go(self, batches: Sequence[Batch], *, look: bool = False) -> None:
        """They are done with. `look`: there may be something to claim that was not before."""
        if self._keeper is not None:
            self._keeper.drop(batches)
        for batch in batches:
            self._held.pop(batch.key, None)
        self._finished += len(batches)
        if look or self._until_idle:
            self._wake.set()

    # Working

    def _bind(self, batch: Batch) -> structlog.stdlib.BoundLogger:
        return self._log.bind(
            job=batch.job_id,
            batch=batch.batch_id,
            epoch=batch.lease_epoch,
            stage=batch.stage,
            attempt=batch.attempt,
        )

    async def _work(self, batch: Batch) -> None:
        if (reason := batch.unreadable) is not None:
            self._bind(batch).warning("batch failed", step="claim", error=reason)
            await self._release(batch, reason)
            return
        for _ in range(TRIES):
            if not await self._try(batch):
                return
            # The same lease, from the start.
            (batch,) = self._hold([batch.afresh()])
        await self._release(batch, f"its transaction was lost {TRIES} times")

    async def _try(self, batch: Batch) -> bool:
        """Work a batch and record it; say whether that is to be done again under this lease."""
        conn = AsyncLazyConnection(self._client)
        started = monotonic()
        step = "handler"
        if self._time_limit is not None and self._keeper is not None:
            self._keeper.limit(batch)
        try:
            async with conn.scope():
                await self._call(batch, conn)
                step = "record"
                together = self._max_jobs > 1 and not conn.used and not batch.emits
                if not together:
                    result = batch.result
                    if self._keeper is not None:
                        # From here on an extension would only wait for the record's transaction.
                        self._keeper.drop([batch])
                    recorded = await self._client.record_batch(
                        batch.batch_id,
                        batch.lease_epoch,
                        **result,
                        conn=conn if conn.used else None,
                    )
                    step = "commit"
        except AlreadyRecorded as exc:
            if step == "record" and not conn.used:
                # The client repeated the call: its first answer was lost on the way.
                self._recorded_before(batch)
                return False
            return await self._lost(batch, exc, step)
        except Exception as exc:  # noqa: BLE001 - a handler may raise anything
            return await self._lost(batch, exc, step)
        if together:
            await self._finish(batch, started)
            return False
        # Where its stage is done the next may have begun; where the job is, nothing comes after.
        opens = recorded.stage_done and not recorded.job_done
        self._let_go([batch], look=opens or bool(result["next_items"]))
        if tells_info(self._log):
            self._tell_recorded(batch, result, started, status=str(recorded.job_status))
            if recorded.job_done:
                self._bind(batch).info("job has ended", status=str(recorded.job_status))
        return False

    # Recording together

    async def _finish(self, batch: Batch, started: float) -> None:
        """Leave it to be recorded with others; where too many wait for that, do it at once."""
        self._finals.append((batch, started))
        if len(self._finals) < self._max_jobs:
            if not self._some_finals.is_set():
                self._some_finals.set()
        else:
            await self._post_finals()

    async def _record_finals(self) -> None:
        """Record what is finished, all that there is with each call, until no lane is at work."""
        while True:
            await self._some_finals.wait()
            self._some_finals.clear()
            at_work = bool(self._at_work)
            while self._finals:
                await self._post_finals()
            if not at_work:
                return

    async def _post_finals(self) -> None:
        finals: list[tuple[Batch, float]] = []
        with suppress(IndexError):  # there is no more: several may take at once
            while len(finals) < MOST_TOGETHER:
                finals.append(self._finals.popleft())
        if not finals:
            return
        batches = [batch for batch, _ in finals]
        results = [batch.result for batch in batches]
        if self._keeper is not None:
            self._keeper.drop(batches)
        try:
            outcomes = await self._persist(
                partial(
                    self._client.tuples,
                    BatchOutcome,
                    "record_batches",
                    batch_ids=[batch.batch_id for batch in batches],
                    lease_epochs=[batch.lease_epoch for batch in batches],
                    failed=_each(results, "failed", []),
                    counters=_each(results, "counters", {}),
                )
            )
        except Exception:  # noqa: BLE001 - it may not even be possible to send a result
            # One of them is at fault, and nothing was recorded: each for itself.
            for batch, started in finals:
                await self._post_alone(batch, started)
            return
        if outcomes is None:
            return  # stopped, with the server away: they are given back at the end
        self._let_go(batches)
        tells = tells_info(self._log)
        for (batch, started), result, (_, outcome) in zip(finals, results, outcomes, strict=True):
            if outcome == Outcome.STALE:
                log = self._bind(batch)
                tell = log.info if batch.job_cancelled else log.warning
                tell("result refused", sqlstate=LATE, reason="the lease is lost")
            elif tells:
                self._tell_recorded(batch, result, started)
        # Of the next stage, perhaps.
        self._wake.set()

    async def _post_alone(self, batch: Batch, started: float) -> None:
        result = batch.result
        try:
            recorded = await self._persist(partial(self._client.record_batch, *batch.key, **result))
        except AlreadyRecorded:
            self._recorded_before(batch)
        except Exception as exc:  # noqa: BLE001 - as above
            if await self._lost(batch, exc, "record"):
                await self._release(batch, plain_text(exc))
        else:
            if recorded is not None:
                self._let_go([batch], look=True)
                self._tell_recorded(batch, result, started)

    # A handler's call

    async def _call(self, batch: Batch, conn: AsyncLazyConnection) -> None:
        """Call the handler. Whatever it raises, SystemExit too, is about its batch alone."""
        me = os.getpid()
        try:
            await self._handler(batch, conn)
            conn.require_transaction()
        except Exception:
            raise
        except BaseException as exc:
            if _aio.is_cancelled(exc):
                raise
            raise RuntimeError(f"the handler raised {plain_text(exc)}") from exc
        finally:
            if os.getpid() != me:
                # It has forked, and this is the child: connections and leases are its parent's.
                os._exit(CHILD_CAME_BACK)

    def _tell_recorded(
        self, batch: Batch, result: dict[str, Any], started: float, **more: str
    ) -> None:
        self._bind(batch).info(
            "batch recorded",
            **more,
            items=len(batch.items),
            failed=len(result["failed"] or ()),
            seconds=round(monotonic() - started, 3),
        )

    def _recorded_before(self, batch: Batch) -> None:
        self._let_go([batch], look=True)
        self._bind(batch).info("batch recorded", acknowledgement="lost")

    async def _lost(self, batch: Batch, exc: Exception, step: str) -> bool:
        """The transaction is gone, or (at its commit) may be. Say whether to work it again."""
        if step != "handler" and isinstance(exc, StaleLease | AlreadyRecorded | NotFound):
            await self._refused(batch, exc)
            return False
        if is_passing(exc):
            return await self._settle(batch, exc, step)
        self._bind(batch).warning(
            "batch failed", step=step, error=plain_text(exc, 200), exc_info=exc
        )
        await self._release(batch, plain_text(exc))
        return False

    async def _settle(self, batch: Batch, exc: Exception, step: str) -> bool:
        """Find out, when the server is there again, whether the batch is still to be worked.

        To record it again would not do: if the commit did not take place, the handler's rows are
        gone, and a record without them would be a lie. So the lease is asked.
        """
        self._bind(batch).warning("transaction lost", step=step, error=plain_text(exc, 200))
        try:
            state = await self._persist(
                self._bounded,
                self._client.extend_lease,
                *batch.key,
                self._lease,
            )
        except AlreadyRecorded:
            self._recorded_before(batch)
            return False
        except (StaleLease, NotFound) as refusal:
            await self._refused(batch, refusal)
            return False
        if state is None or self._stopping.is_set():
            await self._give_back(batch)
            return False
        if not is_connection_lost(exc):
            # Two that were in each other's way should not meet again at once.
            await self._stopping.wait(random.uniform(0.0, 0.2))  # noqa: S311
        return True

    async def _refused(self, batch: Batch, exc: Error) -> None:
        """The result came too late, and its rows are gone with it: say so."""
        log = self._bind(batch)
        self._let_go([batch])
        late = batch.claim.lease_expires_at.isoformat(timespec="seconds")
        try:
            await self._client.report_refused(
                batch.batch_id, batch.lease_epoch, exc.sqlstate, f"worker {self.name}"
            )
            status = (await self._client.job_progress(batch.job_id)).status
        except (Error, psycopg.Error) as trouble:
            log.warning("result refused, and not reported", error=plain_text(trouble, 200))
            return
        # After a cancel that is what is to be expected; else somebody should know.
        tell = log.info if status in {"CANCELING", "REVOKED"} else log.warning
        tell(
            "result refused",
            sqlstate=exc.sqlstate,
            reason=exc.message,
            status=str(status),
            leased_until=late,
        )

    async def _release(self, batch: Batch, error: str) -> None:
        """Give a batch back with an error, which costs an attempt unless its job is cancelled."""
        retry_in = self._retry_in(batch.attempt)
        try:
            await self._persist(
                self._client.release_batch,
                batch.batch_id,
                batch.lease_epoch,
                None if batch.job_cancelled else error,
                retry_in,
            )
        except (StaleLease, AlreadyRecorded, NotFound) as exc:
            self._bind(batch).info("batch is another's by now", reason=exc.message)
        # Rounded up, so that they are few however many fail.
        due = monotonic() + retry_in.total_seconds()
        self._dues.add(ceil(due / SHORTEST_POLL) * SHORTEST_POLL)
        self._let_go([batch], look=True)

    async def _give_back(self, batch: Batch) -> None:
        """Give a batch back that is not worked, or not to its end; that costs no attempt."""
        log = self._log.bind(job=batch.job_id, batch=batch.batch_id, epoch=batch.lease_epoch)
        release = partial(self._bounded, self._client.release_batch, *batch.key)
        given = False
        try:
            if not self._stopping.is_set():
                given = await self._persist(release) is not None
            elif not self._away:
                await release()
                given = True
        except (StaleLease, AlreadyRecorded, NotFound) as exc:
            log.info("batch is another's by now", reason=exc.message)
        except psycopg.Error as exc:
            log.warning("batch not given back, its lease runs out", error=plain_text(exc, 200))
            # Each further try would wait as long for a connection.
            self._away = self._away or is_connection_lost(exc)
        else:
            if given:
                log.info("batch given back")
            else:
                log.warning("batch not given back, its lease runs out", error="server is away")
        self._let_go([batch])

    # Beside the work

    async def _reap(self) -> bool:
        try:
            reaped = await self._persist(self._client.reap_leases)
        except Error as exc:
            # Whatever was in its way, the next one looks again.
            self._log.warning("reaping refused", sqlstate=exc.sqlstate, reason=exc.message)
            return False
        for one in reaped or ():
            self._log.info(
                "reaped", action=one.action, job=one.job_id, batch=one.batch_id, detail=one.detail
            )
        return bool(reaped)

    async def _reap_now_and_then(self) -> None:
        every = self._reap_every or 0.0
        # Jittered, so that of many workers one after the other looks.
        while not await self._stopping.wait(every * random.uniform(0.5, 1.5)):  # noqa: S311
            if await self._reap():
                self._wake.set()

    async def _listen(self, conninfo: str) -> None:
        """Be woken by the database. Only a help: whatever is missed, the next poll finds."""
        while not self._stopping.is_set():
            await self._persist(self._hear, conninfo)

    async def _hear(self, conninfo: str) -> None:
        async with await AsyncConnection.connect(conninfo, autocommit=True) as conn:
            await conn.execute("listen pyjobs")
            encoding = conn.info.encoding
            if encoding == "ascii":  # of a SQL_ASCII database: the bytes are as psycopg sends them
                encoding = "utf-8"
            queues = {queue.encode(encoding, "replace") for queue in self._queues}
            with _aio.Bell() as self._bell:
                self._hears = True
                self._wake.set()  # for what came before
                try:
                    while not self._stopping.is_set():
                        await self._bell.wait(conn.fileno())
                        conn.pgconn.consume_input()
                        while notice := conn.pgconn.notifies():
                            if notice.extra in queues:
                                self._wake.set()
                finally:
                    self._hears = False
