"""What each call may return.

A small model of the interface, that knows nothing of how it is made. A call may answer by any
state that was committed between its beginning and its transaction's end, its own change included;
what was promised to it must stand in the state that its transaction's commit made.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from tests.explorer import effects
from tests.explorer.effects import CLAIMS
from tests.explorer.rules import (
    CLAIMABLE,
    FINAL,
    OPEN,
    claimable_batches,
    job_of,
    rows,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.explorer.rules import Row, State
    from tests.explorer.run import Call, Outcome, Step

_REVIVES = {
    "resume_job",
    "resume_queue",
    "retry_job",
    "resolve_job",
    "release_job",
    "enqueue_job",
    "enqueue_jobs",
}
LEASED = {"record_batch", "record_and_claim", "extend_lease", "release_batch"}
# From which states an operator's call may be refused as illegal.
_ILLEGAL: dict[str, Callable[[str], bool]] = {
    "quarantine_job": lambda s: s not in CLAIMABLE,
    "resolve_job": lambda s: s != "UNKNOWN",
    "retry_job": lambda s: s not in FINAL,
    "finalize_job": lambda s: s in ("CANCELING", "UNKNOWN"),
}


def judge(outcome: Outcome) -> Iterator[str]:
    """What no order of the calls can explain."""
    cut_off = {s.session for s in outcome.steps if s.kind == "timeout"} | outcome.detected
    for call in outcome.calls:
        if call.answer is None or call.op.function is None:
            continue
        checker = _Call(outcome, call, cut_off=call.session in cut_off)
        for text in checker.wrong():
            yield f"session {chr(97 + call.session)}: {call.op}: {text}"
    yield from _once(outcome)
    yield from _items(outcome)
    yield from _alone(outcome)


class _Call:
    def __init__(self, outcome: Outcome, call: Call, *, cut_off: bool) -> None:
        assert call.answer is not None
        self.outcome = outcome
        self.call = call
        self.answer = call.answer
        self.name = call.op.function or ""
        self.cut_off = cut_off
        # What was committed while it ran.
        self.window = outcome.states[call.began : call.answered + 1]
        self.after: State | None = outcome.states[call.ended] if call.ended is not None else None
        numbers = [int(n) for n in re.findall(r"\b\d+\b", call.text)]
        self.first = numbers[0] if numbers else 0
        self.second = numbers[1] if len(numbers) > 1 else 0
        # An earlier call of the same transaction may have changed what this one sees.
        together = [
            c.op.function
            for c in outcome.calls
            if (c.session, c.transaction) == (call.session, call.transaction)
        ]
        self.alone = len(together) == 1
        self.purged = "purge_jobs" in together
        self.revived = not _REVIVES.isdisjoint(together)

    def wrong(self) -> Iterator[str]:
        if self.answer.sqlstate:
            if not self._may_fail(self.answer.sqlstate):
                yield f"raised {self.answer.sqlstate} {self.answer.message}"
            return
        if self.name in CLAIMS:
            yield from self._claimed()
        if self.name == "record_batches":
            yield from self._outcomes()
        if self.call.undisturbed and self.alone and not self.outcome.scenario.linger:
            yield from self._in_peace()
        if not self.call.kept or self.after is None or not self.alone:
            return
        assert self.call.ended is not None
        yield from effects.wrong(self.call, self.outcome.states[self.call.ended - 1], self.after)
        if self.name in ("record_batch", "record_and_claim"):
            yield from self._recorded()
        status = self._returned_status()
        if status is not None:
            yield from self._status(status)

    # -- errors

    def _may_fail(self, sqlstate: str) -> bool:
        jobs = [j for s in self.window for j in rows(s, "job")]
        match sqlstate:
            case "40P01":  # the server's own report
                return self.outcome.scenario.may_deadlock
            case "PJ001" | "PJ003" | "PJ006" if not self.alone:
                return True  # it sees what its own transaction has done before
            case "PJ004" if self.purged:
                return True
            case "PJ004":
                of_batch = self.name in LEASED or self.name in ("report_refused", "record_batches")
                return any(
                    (self._batch(s) if of_batch else job_of(s, self.first)) is None
                    for s in self.window
                )
            case "PJ001":
                return self.name in LEASED and (
                    not self.alone or any(not self._holds(s) for s in self.window)
                )
            case "PJ002":
                return self.name in LEASED and (
                    not self.alone or any(self._is_recorded(s) for s in self.window)
                )
            case "PJ005":
                staged = "stages =>" in " ".join(self.outcome.scenario.setup)
                return "next_items" in self.call.text and not staged
            case "PJ003":
                illegal = _ILLEGAL.get(self.name)
                return illegal is not None and any(illegal(j["status"]) for j in jobs)
            case "PJ006":
                if self.cut_off:
                    return True
                if self.name == "add_items":
                    return any(j["sealed"] or j["status"] in (*FINAL, "CANCELING") for j in jobs)
                if self.name in ("pause_job", "resume_job", "set_priority"):
                    return any(j["status"] in FINAL for j in jobs)
                return self.name == "retry_job" and "true" in self.call.text
        return False

    def _batch(self, state: State) -> Row | None:
        return next((b for b in rows(state, "batch") if b["id"] == self.first), None)

    def _holds(self, state: State) -> bool:
        b = self._batch(state)
        return b is not None and b["state"] == "leased" and b["lease_epoch"] == self.second

    def _is_recorded(self, state: State) -> bool:
        b = self._batch(state)
        return b is not None and b["state"] == "recorded" and b["lease_epoch"] == self.second

    # -- claims

    def _claimed(self) -> Iterator[str]:
        for row in self.answer.rows:
            if row["batch_id"] is None:
                continue
            batch, epoch = int(row["batch_id"]), int(row["lease_epoch"])
            # Only live work: never what was off before it began, and stayed off.
            if not self.revived and not any(
                job["status"] in CLAIMABLE
                and not job["paused"]
                and not any(q["name"] == job["queue"] and q["paused"] for q in rows(s, "queue"))
                for s in self.window
                for job in rows(s, "job")
                if job["id"] == int(row["job_id"])
            ):
                yield f"was given batch {batch} of a job that was not to be served"
            if self.call.kept and self.alone and self.after is not None:
                now = next((b for b in rows(self.after, "batch") if b["id"] == batch), None)
                if now is None or now["lease_epoch"] != epoch or now["state"] != "leased":
                    yield f"was given batch {batch} under epoch {epoch}, which it does not hold"

    def _in_peace(self) -> Iterator[str]:
        """With nobody else at work there is one answer, and this is it."""
        before = self.window[0]
        match self.name:
            case "claim_next_job" | "claim_next_batch" | "claim_jobs":
                yield from self._claimed_in_peace(before)
            case "cancel_job":
                job = job_of(before, self.first)
                if job is None:
                    return
                leased = any(
                    b["job_id"] == job["id"] and b["state"] == "leased"
                    for b in rows(before, "batch")
                )
                wanted = (
                    job["status"]
                    if job["status"] in FINAL
                    else "CANCELING"
                    if leased and ", '0')" not in self.call.text
                    else "REVOKED"
                )
                if self.answer.rows[0]["cancel_job"] != wanted:
                    yield f"returned {self.answer.rows[0]['cancel_job']}, not {wanted}"
            case "finalize_job":
                job = job_of(before, self.first)
                forced = "'" in self.call.text
                if (
                    job
                    and forced
                    and (self.answer.rows[0]["transitioned"] == "t") == (job["status"] in FINAL)
                ):
                    yield f"transitioned {self.answer.rows[0]['transitioned']}"

    def _claimed_in_peace(self, before: State) -> Iterator[str]:
        paused = {q["name"] for q in rows(before, "queue") if q["paused"]}
        ready = {
            job["id"]: len(
                [
                    b
                    for b in claimable_batches(before, job)
                    if b["due_at"] == "-infinity" or str(b["due_at"]) <= before["now"]
                ]
            )
            for job in rows(before, "job")
            if job["queue"] not in paused
            and str(job["run_at"]) <= before["now"]
            and (self.name == "claim_next_batch" or job["queue"] == "q")
        }
        got: Counter[int] = Counter(int(r["job_id"]) for r in self.answer.rows)
        numbers = re.search(r", (\d+)\)$", self.call.text)
        most = int(numbers[1]) if numbers else 1
        if self.name == "claim_next_batch":
            wanted = min(most, ready.get(self.first, 0))
            if got.total() != wanted:
                yield f"was given {got.total()} batches, not {wanted}"
        elif self.name == "claim_jobs":
            wanted = min(most, sum(n > 0 for n in ready.values()))
            if len(got) != wanted or got.total() != wanted:
                yield f"was given {dict(got)}, not one of each of {wanted} jobs"
        elif any(ready.values()):
            if len(got) != 1 or any(n != min(most, ready[j]) for j, n in got.items()):
                yield f"was given {dict(got)} of {ready}"
        elif got:
            yield f"was given {dict(got)}, and there was nothing"

    # -- results

    def _outcomes(self) -> Iterator[str]:
        """What became of each of many."""
        listed = re.findall(r"'{([\d,]+)}'", self.call.text)
        ids, epochs = ([int(n) for n in text.split(",")] for text in listed)
        if [int(r["batch_id"]) for r in self.answer.rows] != ids:
            yield "did not answer for each, in order"
        for row, epoch in zip(self.answer.rows, epochs, strict=True):
            seen = [
                b for s in self.window for b in rows(s, "batch") if b["id"] == int(row["batch_id"])
            ]
            held = [b["state"] == "leased" and b["lease_epoch"] == epoch for b in seen]
            already = [b["state"] == "recorded" and b["lease_epoch"] == epoch for b in seen]
            match row["outcome"]:
                case "recorded":
                    right = any(held)
                case "already":
                    right = any(already)
                case _:
                    right = not all(held) and not all(already)
            if self.alone and not right:
                yield f"said {row['outcome']} of batch {row['batch_id']}"

    def _recorded(self) -> Iterator[str]:
        assert self.after is not None
        if not self._is_recorded(self.after):
            yield "said recorded, and it is not"
            return
        row = self.answer.rows[0]
        batch = self._batch(self.after)
        assert batch is not None
        job = job_of(self.after, batch["job_id"])
        assert job is not None
        if "job_done" in row:
            over = job["status"] in FINAL and job["run"] == batch["run"]
            if (row["job_done"] == "t") != over:
                yield f"said job_done {row['job_done']}; at its commit the job is {job['status']}"
            stage = next(
                s
                for s in rows(self.after, "stage")
                if (s["job_id"], s["run"], s["no"])
                == (batch["job_id"], batch["run"], batch["stage"])
            )
            if (row["stage_done"] == "t") != stage["done"]:
                yield f"said stage_done {row['stage_done']}; at its commit that is {stage['done']}"

    def _returned_status(self) -> str | None:
        for row in self.answer.rows:
            for name in ("job_status", "recorded_status", "status", self.name):
                value = row.get(name)
                if isinstance(value, str) and value.isupper() and value.isalpha():
                    return value
        return None

    def _status(self, status: str) -> Iterator[str]:
        """A status that it returns was true at some moment until its commit."""
        assert self.after is not None
        job_id = self.first
        if self.name in LEASED:
            batch = self._batch(self.after)
            job_id = batch["job_id"] if batch else 0
        seen = set()
        for state in [
            *self.window,
            *self.outcome.states[self.call.answered : self.call.ended or 0],
            self.after,
        ]:
            job = job_of(state, job_id)
            if job:
                seen |= {shown(state, job), job["status"]}
                if job["status"] in ("PENDING", "RETRY"):
                    seen |= {"STARTED"}  # others may have begun meanwhile
        if status not in seen:
            yield f"returned {status}; it was {', '.join(sorted(seen))}"
        if self.name in ("cancel_job", "quarantine_job", "resolve_job", "retry_job"):
            job = job_of(self.after, job_id)
            if (
                job
                and status not in (shown(self.after, job), job["status"])
                and not (status in FINAL and self.name == "cancel_job")
            ):
                yield f"returned {status}; at its commit the job is {job['status']}"


def _once(outcome: Outcome) -> Iterator[str]:
    """A batch counts once; a lease is given once; a result that was taken is there."""
    last = outcome.states[-1]
    begin = outcome.states[0]
    was = {b["id"] for b in rows(begin, "batch") if b["state"] == "recorded"}
    taken: Counter[int] = Counter()
    leases: Counter[tuple[str, str]] = Counter()
    for call in outcome.calls:
        if not call.kept or call.answer is None or call.answer.sqlstate:
            continue
        name = call.op.function
        if name in ("record_batch", "record_and_claim"):
            found = re.search(r"\((\d+)", call.text)
            assert found is not None
            taken[int(found[1])] += 1
        if name == "record_batches":
            for row in call.answer.rows:
                taken[int(row["batch_id"])] += row["outcome"] == "recorded"
        if name in CLAIMS:
            for row in call.answer.rows:
                if row["batch_id"] is not None:
                    leases[row["batch_id"], row["lease_epoch"]] += 1
    for batch in rows(last, "batch"):
        wanted = batch["state"] == "recorded" and batch["id"] not in was
        if taken[batch["id"]] != wanted:
            times = taken[batch["id"]]
            yield f"batch {batch['id']} was taken {times} times; it is {batch['state']}"
    for (batch_id, epoch), times in leases.items():
        if times > 1:
            yield f"batch {batch_id}: epoch {epoch} was given out {times} times"


def _items(outcome: Outcome) -> Iterator[str]:
    """Items that were taken in are there, and no others."""
    given: Counter[tuple[bool, bool]] = Counter()
    for call in outcome.calls:
        if not call.kept or call.answer is None or call.answer.sqlstate:
            continue
        if call.op.function == "add_items":
            given[False, True] += len(re.findall(r"\"add", call.text))
        if call.op.function in ("record_batch", "record_and_claim"):
            given[True, True] += len(re.findall(r"\"emit", call.text))
    for emitted in (False, True):
        before, after = (
            sum(
                b["item_count"]
                for b in rows(s, "batch")
                if b["emitted"] is emitted and b["run"] == 1
            )
            for s in (outcome.states[0], outcome.states[-1])
        )
        if any(
            c.op.function in ("enqueue_job", "enqueue_jobs", "purge_jobs") for c in outcome.calls
        ):
            continue
        wanted = before + given[emitted, True]
        if after != wanted:
            yield f"{'emitted' if emitted else 'given'} items: {after}, not {wanted}"


def _alone(outcome: Outcome) -> Iterator[str]:
    """No hot row: before the tail a recorder waits for nobody who recorded another batch.

    The tail is reached when each open batch of the stage is in somebody's hands. Told from the
    waits that were seen; left out is who waits while an operator or a producer is at work, whose
    batch somebody else has changed as well, who waits for one who hands a stage over, and who
    comes at the very moment at which another tries the lock of the batch that is free: it is seen
    as in somebody's hands then.
    """
    for at, step in enumerate(outcome.steps):
        if not step.waits or step.place is None or "advisory" in step.place.text:
            continue
        call = _call_at(outcome, step.session, at)
        if call is None or call.op.function not in ("record_batch", "record_and_claim"):
            continue
        state = outcome.states[step.state]
        batches = {b["id"]: b for b in rows(state, "batch")}
        mine = batches.get(int(re.findall(r"\d+", call.text)[0]))
        if mine is None:
            # Of its own transaction's making: nobody else's business yet.
            continue
        job = job_of(state, mine["job_id"])
        if job is None or job["status"] not in CLAIMABLE:
            continue
        held: set[int] = set()
        plain = not _tries_a_lock(outcome, step.session, at)
        for other in outcome.calls:
            if other.first_step > at or (other.ended is not None and other.ended <= step.state):
                continue
            touched = _touched(other)
            if other.session != step.session:
                plain &= (
                    touched is not None
                    and mine["id"] not in touched
                    and all(batches[b]["stage"] >= mine["stage"] for b in touched if b in batches)
                )
            held |= touched or set()
        free = [
            b["id"]
            for b in batches.values()
            if (b["job_id"], b["run"], b["stage"]) == (mine["job_id"], mine["run"], mine["stage"])
            and b["state"] in OPEN
            and b["id"] not in held
        ]
        if plain and free:
            yield f"batch {mine['id']}: waits with its record, although batch {free[0]} is free"


def _tries_a_lock(outcome: Outcome, session: int, at: int) -> bool:
    """Whether another had the lock of an obstacle, to give it back with its next step, when this
    session came to wait, or tried for one before."""
    call = _call_at(outcome, session, at)
    tries = [
        index
        for index in range(call.first_step if call else at, at + 1)
        if outcome.steps[index].session == session
        and (index == at or _at_a_lock(outcome.steps[index]))
    ]
    for index in tries:
        last = {step.session: step for step in outcome.steps[:index] if step.session != session}
        if any(_at_a_lock(step) and not step.waits for step in last.values()):
            return True
    return False


def _at_a_lock(step: Step) -> bool:
    return step.place is not None and step.place.function == "obstacle_lock"


def _call_at(outcome: Outcome, session: int, at: int) -> Call | None:
    """The call that a session is in at a step."""
    own = [c for c in outcome.calls if c.session == session and c.first_step <= at]
    return max(own, key=lambda c: c.first_step, default=None)


def _touched(call: Call) -> set[int] | None:
    """The batches that a worker's call has in hand; None where that cannot be told."""
    name = call.op.function
    if name in ("record_batch", "extend_lease", "release_batch"):
        return {int(re.findall(r"\d+", call.text)[0])}
    if name == "report_refused":
        return set()
    if name in CLAIMS and call.answer is not None:
        got = {int(r["batch_id"]) for r in call.answer.rows if r["batch_id"] is not None}
        if name == "record_and_claim":
            got.add(int(re.findall(r"\d+", call.text)[0]))
        return got
    return None
