"""What each call may return.

A small model of the interface, that knows nothing of how it is made. A call may answer by any
state that was committed between its beginning and its transaction's end, its own change included;
what was promised to it must stand in the state that its transaction's commit made.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from tests.explorer.rules import (
    CLAIMABLE,
    FINAL,
    job_of,
    rows,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.explorer.rules import Row, State
    from tests.explorer.run import Call, Outcome

CLAIMS = {"claim_next_job", "claim_next_batch", "claim_jobs", "record_and_claim"}
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
    cut_off = {s.session for s in outcome.steps if s.kind in ("timeout", "deadlock")}
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
        self.alone = (
            sum(
                (c.session, c.transaction) == (call.session, call.transaction)
                for c in outcome.calls
            )
            == 1
        )

    def wrong(self) -> Iterator[str]:
        if self.answer.sqlstate:
            if not self._may_fail(self.answer.sqlstate):
                yield f"raised {self.answer.sqlstate} {self.answer.message}"
            return
        if self.name in CLAIMS:
            yield from self._claimed()
        if not self.call.kept or self.after is None or not self.alone:
            return
        if self.name in ("record_batch", "record_and_claim"):
            yield from self._recorded()
        status = self._returned_status()
        if status is not None:
            yield from self._status(status)

    # -- errors

    def _may_fail(self, sqlstate: str) -> bool:
        jobs = [j for s in self.window for j in rows(s, "job")]
        match sqlstate:
            case "40P01" | "57014":  # the scheduler breaks a deadlock by a cancel
                return self.outcome.scenario.jobs > 1
            case "PJ001" | "PJ003" | "PJ006" if not self.alone:
                return True  # it sees what its own transaction has done before
            case "PJ004":
                return any(self._batch(s) is None for s in self.window)
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
            if self.alone and not any(
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

    # -- results

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
        if any(c.op.function in ("enqueue_job", "enqueue_jobs") for c in outcome.calls):
            continue
        wanted = before + given[emitted, True]
        if after != wanted:
            yield f"{'emitted' if emitted else 'given'} items: {after}, not {wanted}"


def _alone(outcome: Outcome) -> Iterator[str]:
    """No hot row: who records does not wait to the end of one who recorded another batch.

    Unless that one has completed a stage: then it may keep one batch to its commit.
    """
    if any(rows(s, "stage") != rows(outcome.states[0], "stage") for s in outcome.states):
        return
    steps = outcome.steps
    for at, step in enumerate(steps):
        if not (step.waits and step.place and step.place.function == "close_batch"):
            continue
        mine = _recorded_batches(outcome, step.session)
        for later in range(at + 1, len(steps)):
            if steps[later].session != step.session:
                continue
            by = steps[later - 1]
            ends = outcome.scenario.sessions[by.session][by.op].kind == "commit"
            others = _recorded_batches(outcome, by.session)
            if ends and by.place is None and others and mine and not others & mine:
                yield f"waited for the end of session {chr(97 + by.session)}, of another batch"
            break


def _recorded_batches(outcome: Outcome, session: int) -> set[str]:
    """The batches that a session records; none where it does something else as well."""
    found = set()
    for op in outcome.scenario.sessions[session]:
        if op.kind == "call":
            named = re.search(r"record_batch\((\d+)", op.text)
            if named is None:
                return set()
            found.add(named[1])
    return found
