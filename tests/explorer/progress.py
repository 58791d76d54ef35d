"""The progress document beside what the tables say: one truth."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.explorer.rules import job_of, of_run, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.explorer.rules import Row, State
    from tests.explorer.sessions import Control


def wrong(control: Control, state: State) -> Iterator[str]:
    """Where the documents of the jobs disagree with the tables."""
    answer = control.run("select id, pyjobs.job_progress(id) as doc from pyjobs_internal.job")
    for row in answer[0].rows:
        job = job_of(state, int(row["id"]))
        assert job is not None
        doc = json.loads(row["doc"])
        wanted = _document(state, job)
        for got, right in (
            (doc["summary"], wanted["summary"]),
            *zip(doc["stages"], wanted["stages"], strict=True),
            ({"errors": len(doc["errors"]), "more": doc["more_errors"]}, wanted["errors"]),
        ):
            # Shares are rounded.
            near = abs(got.get("progress", 0) - right.get("progress", 0)) < 1e-3
            if not near or any(got[k] != v for k, v in right.items() if k != "progress"):
                yield f"job_progress says {got}, not {right}"


def _document(state: State, job: Row) -> dict[str, Any]:
    stages: list[dict[str, Any]] = []
    errors = 0
    for stage in sorted(of_run(state, "stage", job), key=lambda s: s["no"]):
        own = [b for b in of_run(state, "batch", job) if b["stage"] == stage["no"]]
        counters: Counter[str] = Counter()
        items: Counter[str] = Counter()
        for batch in own:
            items[batch["state"]] += batch["item_count"]
            failed = batch["failed_count"]
            items["failures"] += failed
            if batch["state"] == "recorded":
                counters.update(batch["counters"] or {})
            errors += failed
        total = sum(b["item_count"] for b in own)
        processed = items["recorded"] + items["failed"]
        begun = stage["open"] and items["leased"] + processed > 0
        stages.append(
            {
                "key": stage["key"],
                "total": total,
                "pending": items["pending"],
                "leased": items["leased"],
                "processed": processed,
                "failed": items["failures"],
                "remaining": total - processed,
                "counters": dict(counters),
                "progress": processed / total if total else float(stage["done"]),
                "status": "done" if stage["done"] else "running" if begun else "waiting",
            }
        )
    return {
        "summary": {
            "status": shown(state, job),
            "progress": sum(s["progress"] for s in stages) / len(stages),
        },
        "stages": stages,
        "errors": {"errors": min(errors, 10), "more": max(errors - 10, 0)},
    }
