"""What must hold after every commit, recomputed from the tables by none of pyjobs' own code."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

if TYPE_CHECKING:
    import psycopg

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}
FINALIZABLE = {"CREATED", "PENDING", "STARTED", "RETRY"}

# The table of the states' section, written down once more.
ALLOWED = {
    (None, "CREATED"),
    (None, "PENDING"),
    ("CREATED", "PENDING"),
    ("PENDING", "STARTED"),
    ("RETRY", "STARTED"),
    *((s, e) for s in FINALIZABLE for e in ("SUCCESS", "FAILURE", "REVOKED", "CANCELING")),
    ("CANCELING", "REVOKED"),
    ("UNKNOWN", "REVOKED"),
    *((s, "UNKNOWN") for s in ("PENDING", "STARTED", "RETRY")),
    ("UNKNOWN", "RETRY"),
    ("UNKNOWN", "FAILURE"),
    *((s, "RETRY") for s in FINAL),
}


def broken_rules(
    conn: psycopg.Connection[Any], *, at_rest: bool = True, alone: bool = False
) -> list[str]:
    """The rules that do not hold, in words; ``conn`` is a session of the owner, in autocommit.

    ``at_rest``: no transaction is in flight, so that whatever could be final must be.
    ``alone``: nobody else changes anything, and ``conn`` may be in a transaction.
    """
    with conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        if not alone:
            cursor.execute("set transaction isolation level repeatable read")
        jobs = _all(cursor, "select * from pyjobs_internal.job")
        stages = _all(cursor, "select * from pyjobs_internal.stage order by job_id, run, no")
        batches = _all(
            cursor,
            "select id, job_id, run, stage, state, items, item_count, failed, failed_count, "
            "counters from pyjobs_internal.batch",
        )
        offers = {o["job_id"] for o in _all(cursor, "select * from pyjobs_internal.offer")}
        seen = {j["id"]: j for j in _all(cursor, "select * from pyjobs.job")}
        documents = {
            d["id"]: d["document"]
            for d in _all(cursor, "select id, pyjobs.job_progress(id) as document from pyjobs.job")
        }
        steps = defaultdict(list)
        for step in _all(
            cursor,
            "select j.id, h.*, h.ordinality from pyjobs.job j "
            "cross join lateral pyjobs.job_history(j.id) with ordinality h order by ordinality",
        ):
            steps[step["id"]].append(step)
        audit = _all(cursor, "select * from pyjobs.audit_job()")

    wrong = [f"audit_job: {row}" for row in audit]
    of_run, of_job, stages_of = defaultdict(list), defaultdict(list), defaultdict(list)
    for batch in batches:
        of_run[batch["job_id"], batch["run"]].append(batch)
        of_job[batch["job_id"]].append(batch)
        wrong += _batch(batch)
    for stage in stages:
        stages_of[stage["job_id"], stage["run"]].append(stage)
    for job in jobs:
        mine = of_run[job["id"], job["run"]]
        its_stages = stages_of[job["id"], job["run"]]
        for text in (
            *_ends(job, steps[job["id"]]),
            *_counts(job, its_stages, mine, documents[job["id"]]),
            *_end(job, its_stages, mine),
            *_leases(job, of_job[job["id"]]),
            *(_stuck(job, mine, offers, its_stages) if at_rest else ()),
        ):
            wrong.append(f"job {job['id']} ({seen[job['id']]['status']}): {text}")
        document_status = documents[job["id"]]["summary"]["status"]
        if document_status != seen[job["id"]]["status"]:
            wrong.append(f"job {job['id']}: the document says {document_status}")
    return wrong


def assert_rules(conn: psycopg.Connection[Any], *, at_rest: bool = True) -> None:
    wrong = broken_rules(conn, at_rest=at_rest)
    assert not wrong, "\n".join(wrong)


def _all(cursor: Any, query: str) -> list[dict[str, Any]]:
    return cursor.execute(query.encode()).fetchall()


def _items(batch: dict[str, Any]) -> int:
    return 1 if batch["items"] is None else len(batch["items"])


def _failed(batch: dict[str, Any]) -> int:
    if batch["state"] == "failed":
        return _items(batch)
    return len(batch["failed"] or [])


def _batch(batch: dict[str, Any]) -> list[str]:
    wrong = []
    if batch["item_count"] != _items(batch) or batch["failed_count"] != _failed(batch):
        wrong.append(f"batch {batch['id']}: its counts are not those of its items")
    if batch["state"] != "recorded" and (batch["failed"] or batch["counters"]):
        wrong.append(f"batch {batch['id']}: a result, though {batch['state']}")
    return wrong


def _ends(job: dict[str, Any], steps: list[dict[str, Any]]) -> list[str]:
    wrong = []
    before = None
    for step in steps:
        if step["from_status"] != before:
            wrong.append(f"history: from {step['from_status']} after {before}")
        if (step["from_status"], step["to_status"]) not in ALLOWED:
            wrong.append(f"history: {step['from_status']} to {step['to_status']}")
        before = step["to_status"]
    ends = Counter(s["run"] for s in steps if s["to_status"] in FINAL)
    for run in range(1, job["run"] + 1):
        wanted = 1 if run < job["run"] or job["status"] in FINAL else 0
        if ends[run] != wanted:
            wrong.append(f"run {run} has {ends[run]} ends, not {wanted}")
    if (job["status"] in FINAL) != (job["finished_at"] is not None):
        wrong.append("finish time and status disagree")
    return wrong


def _counts(
    job: dict[str, Any],
    stages: list[dict[str, Any]],
    batches: list[dict[str, Any]],
    document: dict[str, Any],
) -> list[str]:
    wrong = []
    for stage, told in zip(stages, document["stages"], strict=True):
        own = [b for b in batches if b["stage"] == stage["no"]]
        counters: Counter[str] = Counter()
        for batch in own:
            if batch["state"] == "recorded":
                counters.update(batch["counters"] or {})
        wanted = {
            "total": sum(_items(b) for b in own),
            "pending": sum(_items(b) for b in own if b["state"] == "pending"),
            "leased": sum(_items(b) for b in own if b["state"] == "leased"),
            "failed": sum(_failed(b) for b in own if b["state"] in ("recorded", "failed")),
            "processed": sum(_items(b) for b in own if b["state"] in ("recorded", "failed")),
            "counters": dict(counters),
        }
        got = {name: told[name] for name in wanted}
        if got != wanted:
            wrong.append(f"stage {stage['key']}: told {got}, recomputed {wanted}")
        if told["total"] != told["pending"] + told["leased"] + told["processed"]:
            wrong.append(f"stage {stage['key']}: the counts do not add up: {told}")
    return wrong


def _end(
    job: dict[str, Any], stages: list[dict[str, Any]], batches: list[dict[str, Any]]
) -> list[str]:
    """Did completion decide by the threshold, and only when all was closed?"""
    if job["status"] not in ("SUCCESS", "FAILURE"):
        return []
    if job["finished_by"] in ("finalize_job", "resolve_job"):
        return []
    wrong = []
    if any(b["state"] in ("pending", "leased") for b in batches):
        wrong.append("it was completed with open batches")
    too_many = False
    for stage in stages:
        own = [b for b in batches if b["stage"] == stage["no"]]
        total = sum(_items(b) for b in own)
        too_many |= sum(_failed(b) for b in own) > job["failure_threshold"] * total
    if (job["status"] == "FAILURE") != too_many:
        wrong.append("its threshold says otherwise")
    return wrong


def _leases(job: dict[str, Any], batches: list[dict[str, Any]]) -> list[str]:
    leased = [b for b in batches if b["state"] == "leased"]
    wrong = []
    if any(b["run"] != job["run"] for b in leased):
        wrong.append("an earlier run has leases out")
    if leased and job["status"] in (*FINAL, "CREATED", "UNKNOWN"):
        wrong.append("it has leases out")
    return wrong


def _stuck(
    job: dict[str, Any],
    batches: list[dict[str, Any]],
    offers: set[int],
    stages: list[dict[str, Any]],
) -> list[str]:
    states = {b["state"] for b in batches}
    if job["status"] == "CANCELING" and "leased" not in states:
        return ["nothing is leased, and nobody has ended it"]
    if job["status"] not in ("PENDING", "RETRY"):
        return []
    if job["sealed"] and not states & {"pending", "leased"}:
        return ["all is closed, and nobody has ended it"]
    wrong = []
    open_stages = {s["no"] for s in stages if s["open"] and not s["done"]}
    claimable = any(b["state"] == "pending" and b["stage"] in open_stages for b in batches)
    if claimable and not job["paused"] and job["id"] not in offers:
        wrong.append("it can be claimed, and no claim would find it")
    if job["sealed"] and not any(
        b["state"] in ("pending", "leased") and b["stage"] in open_stages for b in batches
    ):
        wrong.append("what is left is behind a barrier that nobody will open")
    return wrong


class Watch:
    """Looks at jobs while all goes on; each row has id, run, status, finished_at and document."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[str, Any]] = {}

    def look(self, row: dict[str, Any]) -> list[str]:
        """What disagrees in itself, or went backwards since this job was last looked at."""
        stages = row["document"]["stages"]
        wrong = [
            f"the counts do not add up: {stage}"
            for stage in stages
            if stage["total"] != stage["pending"] + stage["leased"] + stage["processed"]
        ]
        before = self._seen.get(row["id"])
        self._seen[row["id"]] = row
        if before is None:
            return wrong
        if row["run"] < before["run"]:
            wrong.append("an earlier run is back")
        if row["run"] == before["run"]:
            if before["status"] in FINAL and (
                (row["status"], row["finished_at"]) != (before["status"], before["finished_at"])
            ):
                wrong.append(f"{before['status']} became {row['status']}")
            if before["status"] == "CANCELING" and row["status"] not in ("CANCELING", "REVOKED"):
                wrong.append(f"CANCELING became {row['status']}")
            for old, new in zip(before["document"]["stages"], stages, strict=True):
                if new["processed"] < old["processed"] or new["total"] < old["total"]:
                    wrong.append(f"counts went backwards: {old} {new}")
        return wrong
