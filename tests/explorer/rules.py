"""The rules, recomputed from the tables after every commit. None of pyjobs' own code is used.

``states`` are what the tables held after the set-up and after each transaction, as
``sessions.STATE`` reads them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Row = dict[str, Any]
State = dict[str, Any]

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}
CLAIMABLE = {"PENDING", "STARTED", "RETRY"}
FINALIZABLE = {"CREATED", *CLAIMABLE}
# One transition each; several may lie between two commits.
NEXT = {
    "CREATED": {"PENDING", "CANCELING", *FINAL},
    "PENDING": {"UNKNOWN", "CANCELING", *FINAL},
    "RETRY": {"UNKNOWN", "CANCELING", *FINAL},
    "CANCELING": {"REVOKED"},
    "UNKNOWN": {"RETRY", "FAILURE", "REVOKED"},
    "SUCCESS": {"RETRY"},
    "FAILURE": {"RETRY"},
    "REVOKED": {"RETRY"},
}
OPEN = {"pending", "leased"}


def rows(state: State, table: str) -> list[Row]:
    """The rows of a table."""
    return state[table] or []


def job_of(state: State, job_id: int) -> Row | None:
    """A job's row."""
    return next((j for j in rows(state, "job") if j["id"] == job_id), None)


def shown(state: State, job: Row) -> str:
    """The status that people see."""
    if job["status"] in ("PENDING", "RETRY") and any(
        m["job_id"] == job["id"] and m["era"] == job["era"] for m in rows(state, "start")
    ):
        return "STARTED"
    status: str = job["status"]
    return status


def of_run(state: State, table: str, job: Row) -> list[Row]:
    """The rows of a job's present run."""
    return [r for r in rows(state, table) if r["job_id"] == job["id"] and r["run"] == job["run"]]


def claimable_batches(state: State, job: Row) -> list[Row]:
    """What a worker could be given now or later, as things stand."""
    if job["status"] not in CLAIMABLE or job["paused"]:
        return []
    serving = {s["no"] for s in of_run(state, "stage", job) if s["open"] and not s["done"]}
    return [
        b for b in of_run(state, "batch", job) if b["state"] == "pending" and b["stage"] in serving
    ]


def broken(state: State, *, excused: bool) -> Iterator[str]:
    """The rules that do not hold in one committed state.

    ``excused``: an operator's wait was cut off in this schedule, so that a cancelling job with
    nothing leased may be left to the next who closes a lease, or to the reaper.
    """
    for batch in rows(state, "batch"):
        yield from _batch(batch)
    for job in rows(state, "job"):
        for text in (
            *_counts(state, job),
            *_end(state, job),
            *_last_one_out(state, job, excused=excused),
            *_one_winner(state, job),
            *_offers(state, job),
            *_marks(state, job),
        ):
            yield f"job {job['id']} ({job['status']}, run {job['run']}): {text}"


def changed(before: State, after: State, *, purged: Collection[str] = frozenset()) -> Iterator[str]:
    """What one transaction may not have changed. It may have deleted jobs ``purged``: so far."""
    gone = set()
    for old in rows(before, "job"):
        new = job_of(after, old["id"])
        if new is None:
            gone.add(old["id"])
            if old["status"] not in purged:
                yield f"job {old['id']}, {old['status']}, is gone"
            continue
        name = f"job {old['id']}"
        if new["run"] == old["run"]:
            if old["status"] in FINAL and new != old:
                wrong = [k for k in old if old[k] != new[k]]
                yield f"{name} was {old['status']}, which is final; changed: {', '.join(wrong)}"
            if old["sealed"] and not new["sealed"]:
                yield f"{name} is no longer sealed"
        elif new["run"] < old["run"]:
            yield f"{name} went back to run {new['run']}"
        if not _reaches(old, new):
            yield f"{name} went from {old['status']} to {new['status']}"
    batches = {b["id"]: b for b in rows(after, "batch")}
    for old in rows(before, "batch"):
        new = batches.get(old["id"])
        if new is None:
            if old["job_id"] not in gone:
                yield f"batch {old['id']} is gone"
            continue
        if old["job_id"] in gone:
            yield f"batch {old['id']} is left of job {old['job_id']}, which is gone"
        if old["state"] in ("recorded", "failed"):
            wrong = [k for k in old if k != "quiet" and old[k] != new[k]]
            if wrong:
                yield f"batch {old['id']} was {old['state']}; changed: {', '.join(wrong)}"
        if new["lease_epoch"] < old["lease_epoch"]:
            yield f"batch {old['id']}: its epoch went back"
        if (
            new["state"] == "leased"
            and old["state"] == "leased"
            and new["lease_epoch"] == old["lease_epoch"]
            and new["worker"] != old["worker"]
        ):
            yield f"batch {old['id']}: another holder under the same epoch"
    stages = {(s["job_id"], s["run"], s["no"]): s for s in rows(after, "stage")}
    for old in rows(before, "stage"):
        now = stages.get((old["job_id"], old["run"], old["no"]))
        if now is None:
            if old["job_id"] not in gone:
                yield f"stage {old['no']} of job {old['job_id']} is gone"
            continue
        if (old["done"] and now != old) or (old["open"] and not now["open"]):
            yield f"stage {old['no']} of job {old['job_id']}: what was done is changed"
    kept = {h["id"]: h for h in rows(after, "history")}
    for old in rows(before, "history"):
        if kept.get(old["id"]) != old and old["job_id"] not in gone:
            yield f"history {old['id']} is changed or gone"


def _reaches(old: Row, new: Row) -> bool:
    """Is there a chain of transitions that opens as many runs as have passed?"""
    front = {(old["status"], old["run"])}
    seen = set(front)
    goal = (new["status"], new["run"])
    while front:
        if goal in front:
            return True
        following = set()
        for status, run in front:
            for status_after in NEXT[status]:
                opened = run + (status in FINAL)
                if opened <= new["run"]:
                    following.add((status_after, opened))
        front = following - seen
        seen |= front
    return False


def _items(batch: Row) -> int:
    return 1 if batch["items"] is None else len(batch["items"])


def _failed(batch: Row) -> int:
    if batch["state"] == "failed":
        return _items(batch)
    return len(batch["failed"] or []) if batch["state"] == "recorded" else 0


def _batch(batch: Row) -> Iterator[str]:
    name = f"batch {batch['id']} ({batch['state']})"
    if batch["item_count"] != _items(batch) or batch["failed_count"] != _failed(batch):
        yield f"{name}: its counts are not those of its items"
    if batch["state"] != "recorded" and (batch["failed"] or batch["counters"]):
        yield f"{name}: it has a result"
    if batch["attempt"] < 0:
        yield f"{name}: attempt {batch['attempt']}"


def _counts(state: State, job: Row) -> Iterator[str]:
    previous_done = True
    for stage in sorted(of_run(state, "stage", job), key=lambda s: s["no"]):
        own = [b for b in of_run(state, "batch", job) if b["stage"] == stage["no"]]
        name = f"stage {stage['no']}"
        if stage["done"]:
            counters: Counter[str] = Counter()
            for batch in own:
                if batch["state"] == "recorded":
                    counters.update(batch["counters"] or {})
            total = sum(_items(b) for b in own)
            failed = sum(_failed(b) for b in own)
            wanted = (total, total - failed, failed, dict(counters))
            got = (stage["total"], stage["succeeded"], stage["failed"], stage["counters"])
            if wanted != got:
                yield f"{name}: written {got}, recomputed {wanted}"
            if any(b["state"] in OPEN for b in own):
                yield f"{name}: done, with open batches"
            if not previous_done:
                yield f"{name}: done before the one before it"
            if not job["sealed"]:
                yield f"{name}: done, and the job is not sealed"
        if stage["open"] and stage["barrier"] and not previous_done:
            yield f"{name}: open before its barrier"
        if previous_done and not stage["open"]:
            yield f"{name}: still behind its barrier"
        previous_done = stage["done"]


def _end(state: State, job: Row) -> Iterator[str]:
    final = job["status"] in FINAL
    if final != (job["finished_at"] is not None):
        yield "finish time and status disagree"
    leased = [
        b for b in rows(state, "batch") if b["job_id"] == job["id"] and b["state"] == "leased"
    ]
    if leased and (final or job["status"] in ("CREATED", "UNKNOWN")):
        yield f"batch {leased[0]['id']} is leased"
    if any(b["run"] != job["run"] for b in leased):
        yield "an earlier run has leases out"
    if job["status"] not in ("SUCCESS", "FAILURE"):
        return
    if job["finished_by"] in ("finalize_job", "resolve_job") and not all(
        s["done"] for s in of_run(state, "stage", job)
    ):
        return  # by force
    own = of_run(state, "batch", job)
    if any(b["state"] in OPEN for b in own):
        yield "completed with open batches"
        return
    if job["finished_by"] in ("finalize_job", "resolve_job"):
        return
    over = False
    for no in {b["stage"] for b in own}:
        mine = [b for b in own if b["stage"] == no]
        over |= sum(map(_failed, mine)) > job["failure_threshold"] * sum(map(_items, mine))
    if over != (job["status"] == "FAILURE"):
        yield "its threshold says otherwise"


def _last_one_out(state: State, job: Row, *, excused: bool) -> Iterator[str]:
    """Rule 7: who removes the last obstacle has ended the job, or the stage, in the same commit."""
    own = of_run(state, "batch", job)
    if job["status"] == "CANCELING":
        if not any(b["state"] == "leased" for b in own) and not excused:
            yield "nothing is leased, and nobody has ended it"
        return
    if job["status"] not in CLAIMABLE or not job["sealed"]:
        return
    if not any(b["state"] in OPEN for b in own):
        yield "all is closed, and nobody has ended it"
    stages = sorted(of_run(state, "stage", job), key=lambda s: s["no"])
    for stage in stages:
        if any(b["state"] in OPEN for b in own if b["stage"] == stage["no"]):
            break
        # Who closes a batch of a later stage completes the earlier ones as well.
        later = {s["no"] for s in stages if s["no"] > stage["no"] and s["open"]}
        if not stage["done"] and not any(b["state"] in OPEN and b["stage"] in later for b in own):
            yield f"stage {stage['no']}: all is closed, and nobody has completed it"


def _one_winner(state: State, job: Row) -> Iterator[str]:
    ends: dict[int, int] = defaultdict(int)
    for step in rows(state, "history"):
        if step["job_id"] == job["id"] and step["to_status"] in FINAL:
            ends[step["run"]] += 1
    for run in range(1, job["run"] + 1):
        got = ends[run] + (run == job["run"] and job["status"] in FINAL)
        wanted = run < job["run"] or job["status"] in FINAL
        if got != wanted:
            yield f"run {run} has {got} ends"


def _offers(state: State, job: Row) -> Iterator[str]:
    """Nothing claimable is without an offer, and that offer is not put off for too long."""
    batches = claimable_batches(state, job)
    if not batches:
        return
    latest = max(state["now"], job["run_at"], min(b["due_at"] for b in batches))
    own = [o for o in rows(state, "offer") if o["job_id"] == job["id"]]
    if not any(o["due_at"] <= latest and o["queue"] == job["queue"] for o in own):
        yield f"batch {batches[0]['id']} can be claimed, and no offer says so"


def _marks(state: State, job: Row) -> Iterator[str]:
    """A claim that begins at the low-water mark passes over nothing."""
    marks: dict[int, int] = defaultdict(int)
    for mark in of_run(state, "mark", job):
        marks[mark["stage"]] = max(marks[mark["stage"]], mark["pos"])
    for batch in of_run(state, "batch", job):
        waits = batch["state"] == "pending" and batch["due_at"] == "-infinity"
        if waits and batch["pos"] < marks[batch["stage"]]:
            yield f"batch {batch['id']} waits below the mark {marks[batch['stage']]}"
    yield from _sums(state, job)


def _sums(state: State, job: Row) -> Iterator[str]:
    """What each mark says that its stage had come to, against the batches of which that is true."""
    for mark in of_run(state, "mark", job):
        if mark["summed_to"] is None:
            yield f"a mark has no sums: {mark}"
            continue
        own = [b for b in of_run(state, "batch", job) if b["stage"] == mark["stage"]]
        below = [b for b in own if b["pos"] < mark["summed_to"]]
        below = [b for b in below if b["id"] not in mark["still_open"]]
        if any(b["closed_at"] is None for b in below):
            yield f"an open batch below a mark is not listed: {mark}"
        if sum(b["item_count"] - b["failed_count"] for b in below) != mark["succeeded"]:
            yield f"not what has succeeded below the mark: {mark}"
        if sum(b["failed_count"] for b in below) != mark["failed"]:
            yield f"not what has failed below the mark: {mark}"
        if sum(b["item_count"] for b in own if b["id"] < mark["total_to"]) != mark["total"]:
            yield f"not the total of what had come: {mark}"


_TIMES = {
    "at", "run_at", "created_at", "run_since", "finished_at", "cancel_deadline", "leased_at",
    "lease_expires_at", "returned_at", "closed_at", "due_at", "now", "id", "pos",
}  # fmt: skip


def fingerprint(state: State) -> str:
    """The same for states that differ in times, and in the numbers given to rows, only."""
    now = state["now"]
    kept: dict[str, Any] = {}
    for table in ("job", "stage", "batch", "offer", "start", "queue", "history"):
        found = []
        for row in rows(state, table):
            plain = {k: v for k, v in row.items() if k not in _TIMES}
            if table in ("job", "batch"):
                plain["id"] = row["id"]
            for name in ("due_at", "lease_expires_at", "cancel_deadline", "run_at"):
                if row.get(name) is not None:
                    plain[name] = str(row[name]) > now
            found.append(plain)
        if table in ("offer", "start"):
            found.sort(key=json.dumps)
        kept[table] = found
    return json.dumps(kept, sort_keys=True)
