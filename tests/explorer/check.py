"""Judges an outcome, and drives what is left to its end, one call after the other."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from tests.explorer import model, progress, rules
from tests.explorer.effects import CLOSES
from tests.explorer.rules import CLAIMABLE, FINAL, job_of, rows
from tests.explorer.sessions import TroubleError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator

    from tests.explorer.rules import State
    from tests.explorer.run import Outcome, Runner
    from tests.explorer.sessions import Control

_ROUNDS = 40
_AUDIT_EVERY = 8


class Checker:
    """Checks outcomes; a state that was driven to its end before is not driven again."""

    def __init__(self, runner: Runner, *, remember: bool = True) -> None:
        self._runner = runner
        self._remember = remember
        self._seen: set[tuple[bool, str]] = set()

    @property
    def final_states(self) -> int:
        """How many different states schedules have ended in."""
        return len(self._seen)

    def check(self, outcome: Outcome) -> list[str]:
        """All that is wrong; empty where nothing is."""
        problems = list(outcome.problems)
        if any(c.answer is None for c in outcome.calls) or problems:
            return problems or ["a call has no answer"]
        # From here on a cancel may have been left to the next who closes a lease.
        excused = _left_to_others(outcome)
        for number, state in enumerate(outcome.states):
            problems += [
                f"after {_commit(outcome, number)}: {text}"
                for text in rules.broken(state, excused=excused)
            ]
            if number:
                problems += [
                    f"by {_commit(outcome, number)}: {text}"
                    for text in rules.changed(
                        outcome.states[number - 1], state, purged=_purged(outcome, number)
                    )
                ]
        problems += model.judge(outcome)
        if not problems:
            last = outcome.states[-1]
            key = (excused, rules.fingerprint(last))
            if key not in self._seen or not self._remember:
                self._seen.add(key)
                # The audit takes longer than all the rest: it is asked now and then, and at first.
                audit = len(self._seen) % _AUDIT_EVERY == 1
                # Half of them by expiry: all who hold a lease have died.
                expire = bool(zlib.crc32(key[1].encode()) & 1)
                driven = _drive(
                    self._runner.control, last, excused=excused, audit=audit, expire=expire
                )
                try:
                    problems += [f"afterwards: {p}" for p in driven]
                except TroubleError as error:
                    problems.append(f"afterwards: {error}")
        return problems


def _left_to_others(outcome: Outcome) -> bool:
    """Whether a cancel may have been left to the next who closes a lease, or to the reaper.

    An operator's wait was cut off, by its bound or by the server's detector; or somebody cancelled
    and closed a lease of that job in one transaction (the exceptions to rule 7).
    """
    if outcome.detected or any(step.kind == "timeout" for step in outcome.steps):
        return True
    by_transaction: dict[tuple[int, int], set[str | None]] = {}
    for call in outcome.calls:
        key = (call.session, call.transaction)
        by_transaction.setdefault(key, set()).add(call.op.function)
    return any("cancel_job" in names and names & CLOSES for names in by_transaction.values())


def _purged(outcome: Outcome, number: int) -> Collection[str]:
    """The states in which a job may have been deleted by the transaction that made this state."""
    calls = [call for call in outcome.calls if call.ended == number]
    if not any(call.op.function == "purge_jobs" for call in calls):
        return ()
    # It may have ended the job before.
    return FINAL if len(calls) == 1 else rules.NEXT


def _commit(outcome: Outcome, number: int) -> str:
    if number == 0:
        return "the set-up"
    for call in outcome.calls:
        if call.ended == number:
            return f"the end of session {chr(97 + call.session)}'s {call.op.function}"
    return f"transaction {number}"


def _drive(
    control: Control, state: State, *, excused: bool, audit: bool, expire: bool = False
) -> Iterator[str]:
    """What is left must come to its end by records alone, the dead ones' batches reaped before."""
    yield from progress.wrong(control, state)
    control.run("update pyjobs_internal.test_clock set ahead = ahead + interval '2 days'")
    before = state
    if expire:
        control.run("select * from pyjobs.reap()")
        after = control.state()
        yield from rules.changed(before, after)
        yield from rules.broken(after, excused=False)
        yield from _reaped(before, after)
        before = after
        # Those that wait for another try are due.
        control.run("update pyjobs_internal.test_clock set ahead = ahead + interval '2 days'")
    for intervene in (False, True):
        if intervene:
            if all(job["status"] in FINAL for job in rows(before, "job")):
                break
            yield from _wake_up(control, before)
        after = yield from _work(control)
        yield from rules.changed(before, after)
        yield from rules.broken(after, excused=excused)
        for job in rows(after, "job"):
            if job["status"] == "CANCELING" and excused:
                continue
            if intervene and job["status"] not in FINAL:
                yield f"job {job['id']} is {job['status']} when all is done"
        before = after
    # What a cancel that was cut off left behind is the reaper's.
    if any(j["status"] == "CANCELING" for j in rows(before, "job")):
        control.run("select * from pyjobs.reap()")
        after = control.state()
        yield from rules.changed(before, after)
        yield from rules.broken(after, excused=False)
        for job in rows(after, "job"):
            if job["status"] not in FINAL:
                yield f"job {job['id']} is {job['status']} after reap"
    if audit:
        for row in control.run("select * from pyjobs.audit_job()")[0].rows:
            yield f"audit_job: {row}"


def _reaped(before: State, after: State) -> Iterator[str]:
    """Nothing of a dead worker is lost: pending again, or failed after the last attempt."""
    now = {b["id"]: b for b in rows(after, "batch")}
    for was in rows(before, "batch"):
        job = job_of(before, was["job_id"])
        if was["state"] != "leased" or job is None:
            continue
        spent = was["attempt"] >= job["max_attempts"] and job["status"] != "CANCELING"
        got = now[was["id"]]["state"]
        if got not in (("failed",) if spent else ("pending", "failed")):
            yield f"batch {was['id']}, whose lease ran out on attempt {was['attempt']}, is {got}"
        if got == "pending" and now[was["id"]]["lease_epoch"] < was["lease_epoch"]:
            yield f"batch {was['id']}: its epoch went back"


def _work(control: Control) -> Generator[str, None, State]:
    """Record what is leased, claim what there is, until there is nothing."""
    control.run(f"call explorer.work({_ROUNDS})")
    state = control.state()
    for job in rows(state, "job"):
        if job["queue"] in {q["name"] for q in rows(state, "queue") if q["paused"]}:
            continue
        if left := rules.claimable_batches(state, job):
            yield f"job {job['id']}: claim_next_job does not find batch {left[0]['id']}"
    return state


def _wake_up(control: Control, state: State) -> Iterator[str]:
    """End the holds, pauses and quarantines that keep jobs from their end."""
    for queue in rows(state, "queue"):
        control.run(f"select pyjobs.resume_queue('{queue['name']}')")
    for job in rows(state, "job"):
        job_id = job["id"]
        if job["status"] in FINAL or job["status"] == "CANCELING":
            continue
        if job["paused"]:
            control.run(f"select pyjobs.resume_job({job_id})")
        if job["status"] == "UNKNOWN":
            control.run(f"select pyjobs.resolve_job({job_id}, 'RETRY', 'go on')")
        if job["status"] == "CREATED":
            control.run(f"select pyjobs.release_job({job_id})")
        if not job["sealed"]:
            control.run(f"select pyjobs.seal_job({job_id})")
    now = control.state()
    for job in rows(state, "job"):
        after = job_of(now, job["id"])
        if (
            after
            and job["status"] in CLAIMABLE
            and job["sealed"]
            and not job["paused"]
            and job["queue"] not in {q["name"] for q in rows(state, "queue")}
        ):
            yield f"job {job['id']} is still {job['status']} when all is recorded"
