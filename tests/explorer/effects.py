"""What each call may change, and what it must have changed when it says so.

For a transaction of one call: the difference between the tables before its commit and after it is
its own doing, all of it. The end of the job or of a stage is left to ``rules``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.explorer.rules import FINAL, job_of, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.explorer.rules import Row, State
    from tests.explorer.run import Call

CLAIMS = {"claim_next_job", "claim_next_batch", "claim_jobs", "record_and_claim"}
RECORDS = {"record_batch", "record_and_claim", "record_batches"}
# Those that close a lease.
CLOSES = {*RECORDS, "release_batch"}
# Which of a job's columns a call may change, but for those of its end and of its next run.
_JOB: dict[str, set[str]] = {
    "pause_job": {"paused"},
    "resume_job": {"paused"},
    "set_priority": {"priority"},
    "seal_job": {"sealed"},
    "cancel_job": {"status", "cancel_deadline", "cancel_settled"},
    "quarantine_job": {"status"},
    "resolve_job": {"status", "era"},
    "release_job": {"status"},
}
_END = {
    "status",
    "finished_at",
    "finished_by",
    "finished_role",
    "finished_from",
    "finished_reason",
    "cancel_deadline",
}
_RUN = {*_END, "run", "era", "full_run", "run_since", "sealed", "paused", "cancel_settled"}
_ENDS_NOTHING = {
    "claim_next_job",
    "claim_next_batch",
    "claim_jobs",
    "extend_lease",
    "add_items",
    "pause_job",
    "resume_job",
    "pause_queue",
    "resume_queue",
    "set_priority",
    "report_refused",
    "enqueue_jobs",
    "enqueue_job",
    "purge_jobs",
}


class Change:
    """What a transaction changed."""

    def __init__(self, before: State, after: State) -> None:
        self.before, self.after = before, after
        old = {b["id"]: b for b in rows(before, "batch")}
        new = {b["id"]: b for b in rows(after, "batch")}
        self.old, self.new = old, new
        self.added = [b for i, b in new.items() if i not in old]
        self.changed = {i: b for i, b in new.items() if i in old and _differ(old[i], b)}
        self.jobs = {
            j["id"]: (was, j)
            for j in rows(after, "job")
            if (was := job_of(before, j["id"])) and was != j
        }
        self.made = [j for j in rows(after, "job") if not job_of(before, j["id"])]
        self.gone = [j for j in rows(before, "job") if not job_of(after, j["id"])]


def _differ(old: Row, new: Row) -> set[str]:
    return {k for k in new if k != "quiet" and old[k] != new[k]}


def wrong(call: Call, before: State, after: State) -> Iterator[str]:
    """What a kept call, the only one of its transaction, may not have done, or left undone."""
    assert call.answer is not None
    name = call.op.function or ""
    change = Change(before, after)
    answer = call.answer.rows
    # Batches: each change has one reason.
    explained: set[int] = set()
    if name in CLAIMS:
        explained |= {int(r["batch_id"]) for r in answer if r["batch_id"] is not None}
        for row in answer:
            if row["batch_id"] is not None:
                yield from _claimed(change, row, call.text)
    if name in RECORDS:
        for batch_id in _recorded_ids(call):
            explained.add(batch_id)
            yield from _recorded(change, batch_id, call)
    if name in ("extend_lease", "release_batch"):
        batch_id = _number(call.text)
        explained.add(batch_id)
        yield from (_extended if name == "extend_lease" else _released)(change, batch_id, call)
    if name in ("reap", "reap_leases"):
        for row in answer:
            if row["batch_id"] is not None:
                explained.add(int(row["batch_id"]))
                yield from _expired(change, row)
    stops = name in ("cancel_job", "finalize_job", "quarantine_job", "reap", "reap_leases")
    for batch_id, batch in change.changed.items():
        was = change.old[batch_id]
        if batch_id in explained:
            continue
        fenced = was["state"] == "leased" and batch["state"] == "pending"
        if stops and fenced and batch["lease_epoch"] == was["lease_epoch"] + 1:
            if batch["attempt"] != was["attempt"] - 1:
                yield f"batch {batch_id} was fenced at the cost of an attempt"
            continue
        yield f"changed {', '.join(sorted(_differ(was, batch)))} of batch {batch_id}"
    yield from _added(change, call)
    yield from _jobs(change, call)


def _number(text: str) -> int:
    found = re.search(r"\((\d+)", text)
    assert found is not None
    return int(found[1])


def _recorded_ids(call: Call) -> list[int]:
    assert call.answer is not None
    if call.op.function == "record_batches":
        return [int(r["batch_id"]) for r in call.answer.rows if r["outcome"] == "recorded"]
    return [_number(call.text)]


def _claimed(change: Change, row: dict[str, Any], text: str) -> Iterator[str]:
    """A claim leases what it returns, and returns what stands there."""
    batch_id = int(row["batch_id"])
    was, now = change.old.get(batch_id), change.new.get(batch_id)
    if was is None or now is None or was["state"] != "pending":
        yield f"was given batch {batch_id}, which was {was['state'] if was else 'not there'}"
        return
    job = job_of(change.after, now["job_id"])
    stage = next(
        s
        for s in rows(change.after, "stage")
        if (s["job_id"], s["run"], s["no"]) == (now["job_id"], now["run"], now["stage"])
    )
    assert job is not None
    wanted = {
        "lease_epoch": was["lease_epoch"] + 1,
        "attempt": was["attempt"] + 1,
        "state": "leased",
        "job_id": int(row["job_id"]),
        "run": job["run"],
    }
    for key, value in wanted.items():
        if now[key] != value:
            yield f"claimed batch {batch_id} has {key} {now[key]}, not {value}"
    items = [job["params"]] if now["items"] is None else now["items"]
    shown = (
        int(row["lease_epoch"]),
        int(row["attempt"]),
        int(row["run"]),
        row["stage"],
        row["queue"],
        json.loads(row["items"]),
        json.loads(row["params"]),
    )
    stored = (
        now["lease_epoch"],
        now["attempt"],
        now["run"],
        stage["key"],
        job["queue"],
        items,
        job["params"],
    )
    if shown != stored:
        yield f"was given {shown}; there stands {stored}"
    if now["worker"] is None or f"'{now['worker']}'" not in text:
        yield f"batch {batch_id} is leased to {now['worker']}"
    if not stage["open"] or stage["done"]:
        yield f"was given batch {batch_id} of stage {stage['key']}, which is not open"


def _recorded(change: Change, batch_id: int, call: Call) -> Iterator[str]:
    was, now = change.old.get(batch_id), change.new.get(batch_id)
    if was is None or now is None or (was["state"], now["state"]) != ("leased", "recorded"):
        yield f"recorded batch {batch_id}, which it did not"
        return
    more = _differ(was, now) - {
        "state",
        "closed_at",
        "lease_expires_at",
        "failed",
        "failed_count",
        "counters",
    }
    if more:
        yield f"changed {', '.join(sorted(more))} of batch {batch_id} with its record"
    failed = call.text.count('"index"')
    if now["failed_count"] != failed:
        yield f"batch {batch_id}: {now['failed_count']} failed, not {failed}"
    counted = re.search(r"counters => '({.*?})'", call.text)
    if counted and (now["counters"] or {}) != json.loads(counted[1]):
        yield f"batch {batch_id}: counters {now['counters']}, not {counted[1]}"


def _extended(change: Change, batch_id: int, call: Call) -> Iterator[str]:
    was, now = change.old[batch_id], change.new[batch_id]
    if now["state"] != "leased" or _differ(was, now) != {"lease_expires_at"}:
        yield f"extended: changed {sorted(_differ(was, now))} of batch {batch_id}, {now['state']}"


def _released(change: Change, batch_id: int, call: Call) -> Iterator[str]:
    was, now = change.old[batch_id], change.new[batch_id]
    with_error = "'" in call.text
    job = job_of(change.after, was["job_id"])
    assert job is not None
    spent = with_error and was["attempt"] >= job["max_attempts"]
    wanted = (
        "failed" if spent else "pending",
        was["attempt"] - (not with_error),
        was["lease_epoch"],
    )
    got = (now["state"], now["attempt"], now["lease_epoch"])
    if got != wanted:
        yield f"released: batch {batch_id} is {got}, not {wanted}"
    later = str(now["due_at"]) > change.before["now"] and now["due_at"] != "-infinity"
    if not spent and later != ("hour" in call.text):
        yield f"released: batch {batch_id} is due {now['due_at']}"
    if not spent and now["pos"] <= was["pos"]:
        yield f"released: batch {batch_id} keeps its place"


def _expired(change: Change, row: dict[str, Any]) -> Iterator[str]:
    batch_id = int(row["batch_id"])
    was, now = change.old[batch_id], change.new[batch_id]
    wanted = "failed" if row["action"] == "failed" else "pending"
    if was["state"] != "leased" or now["state"] != wanted:
        yield f"reap said {row['action']}; batch {batch_id} went {was['state']} to {now['state']}"
    elif str(was["lease_expires_at"]) > change.after["now"]:
        yield f"reap took batch {batch_id}, whose lease runs on"


def _added(change: Change, call: Call) -> Iterator[str]:
    """New batches, with what is in them."""
    name = call.op.function
    expected: list[Any] | None = []
    if name in ("record_batch", "record_and_claim"):
        given = re.search(r"next_items => '(\[.*?\])'", call.text)
        expected = json.loads(given[1]) if given else []
    elif name == "add_items":
        given = re.search(r"add_items\(\d+, '(\[.*?\])'", call.text)
        expected = json.loads(given[1]) if given else []
    elif name in ("enqueue_job", "enqueue_jobs"):
        if not change.made and name == "enqueue_job":
            expected = []
        else:
            given = re.search(r"'(\[.*?\])'", call.text)
            expected = json.loads(given[1]) if given else []
    elif name == "retry_job":
        yield from _retried(change, call)
        return
    got = []
    for batch in change.added:
        job = job_of(change.after, batch["job_id"])
        got += [job["params"] if job else None] if batch["items"] is None else batch["items"]
    if sorted(map(json.dumps, got)) != sorted(map(json.dumps, expected)):
        yield f"added items {got}, not {expected}"


def _retried(change: Change, call: Call) -> Iterator[str]:
    """The new run has what producers gave, or what failed or was never finished."""
    (job_id,) = {b["job_id"] for b in change.added} or {_number(call.text)}
    pair = change.jobs.get(job_id)
    if pair is None or pair[1]["run"] != pair[0]["run"] + 1:
        yield "retried, and opened no run"
        return
    was, now = pair
    wanted = []
    failed_only = "true" in call.text
    run = was["run"] if failed_only else was["full_run"]
    for batch in change.old.values():
        if batch["job_id"] != job_id or batch["run"] != run:
            continue
        items = [was["params"]] if batch["items"] is None else batch["items"]
        if failed_only:
            if batch["state"] == "recorded":
                items = [items[f["index"]] for f in batch["failed"] or []]
        elif batch["emitted"]:
            continue
        wanted += [json.dumps([batch["stage"], item]) for item in items]
    got = []
    for batch in change.added:
        if batch["run"] != now["run"]:
            yield f"added batch {batch['id']} to run {batch['run']}"
        items = [now["params"]] if batch["items"] is None else batch["items"]
        got += [json.dumps([batch["stage"], item]) for item in items]
    if sorted(got) != sorted(wanted):
        yield f"the new run has {sorted(got)}, not {sorted(wanted)}"


def _jobs(change: Change, call: Call) -> Iterator[str]:
    name = call.op.function or ""
    assert call.answer is not None
    for job_id, (was, now) in change.jobs.items():
        allowed = set(_JOB.get(name, set()))
        if name == "retry_job":
            allowed |= _RUN
        elif name not in _ENDS_NOTHING:
            allowed |= _END
        columns = {k for k in now if was[k] != now[k]}
        if columns - allowed:
            yield f"changed {', '.join(sorted(columns - allowed))} of job {job_id}"
        if now["status"] in FINAL and was["status"] not in FINAL and name != "retry_job":
            yield from _ended(was, now, call)
    if name == "purge_jobs" and int(call.answer.rows[0]["purge_jobs"]) != len(change.gone):
        yield f"purged {len(change.gone)} jobs, and said {call.answer.rows[0]['purge_jobs']}"
    if name == "enqueue_jobs" and len(change.made) != len(json.loads(_array(call.text))):
        yield f"made {len(change.made)} jobs"
    if name not in ("enqueue_job", "enqueue_jobs") and change.made:
        yield f"made job {change.made[0]['id']}"
    queues = [
        {q["name"]: q["paused"] for q in rows(s, "queue")} for s in (change.before, change.after)
    ]
    if name in ("pause_queue", "resume_queue"):
        if queues[1].get("q", False) != (name == "pause_queue"):
            yield "the queue is not as it said"
    elif queues[0] != queues[1]:
        yield "changed a queue"
    if name in ("pause_job", "resume_job", "set_priority", "seal_job", "release_job"):
        job = job_of(change.after, _number(call.text))
        if job and not _as_said(name, job):
            yield f"job {job['id']} is not as it said"


def _as_said(name: str, job: Row) -> bool:
    match name:
        case "pause_job" | "resume_job":
            return bool(job["paused"]) == (name == "pause_job")
        case "set_priority":
            return bool(job["priority"] in (5, 7))
        case "seal_job":
            return bool(job["sealed"]) or job["status"] in FINAL
    return bool(job["status"] != "CREATED")


def _array(text: str) -> str:
    found = re.search(r"'(\[.*?\])'", text)
    return found[1] if found else "[]"


def _ended(was: Row, now: Row, call: Call) -> Iterator[str]:
    """The end says by whom, from what and why."""
    name = call.op.function or ""
    by = now["finished_by"]
    workers = set(re.findall(r"'(\w+)'", call.text))
    # Who records ends a job as the worker that held the lease.
    if name in ("reap", "reap_leases"):
        known = {"reap"}
    elif name in CLOSES:
        known = {"w", "u", "v", "v1", "v2", "last", *workers}
    else:
        known = {name}
    if by not in known:
        yield f"job {now['id']} was ended by {by}"
    if not now["finished_role"] or not now["finished_from"]:
        yield f"job {now['id']} does not say from what it ended"
    if now["finished_from"] not in (was["status"], "STARTED", "PENDING", "CANCELING"):
        yield f"job {now['id']} ended from {now['finished_from']}; it was {was['status']}"
