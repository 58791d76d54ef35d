"""Is what the ledger says there, once, and does everything agree with everything?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.support.calls import Calls
from tests.support.rules import FINAL, broken_rules

if TYPE_CHECKING:
    import psycopg

    from tests.beyond.support.ledger import Ledger


def wrong_about(conn: psycopg.Connection[Any], ledger: Ledger, *, ended: bool = True) -> list[str]:
    """What does not hold in the database, in words.

    ``ended``: every job should have come to its end, and nobody works any more.
    """
    calls = Calls(conn)
    wrong = broken_rules(conn, at_rest=ended)
    jobs = {row["id"]: row for row in calls.rows("select id, name, status from pyjobs.job")}
    recorded = {
        (row["id"], row["lease_epoch"])
        for row in calls.rows("select id, lease_epoch from pyjobs.batch where state = 'recorded'")
    }
    rows = Counter(
        (row["batch_id"], row["lease_epoch"])
        for row in calls.rows("select batch_id, lease_epoch from public.result")
    )
    wrong += [f"{lease}: {n} rows of its result" for lease, n in rows.items() if n > 1]
    wrong += [f"{lease}: rows, and not recorded" for lease in rows.keys() - recorded]
    wrong += [f"{lease}: recorded, and no rows" for lease in recorded - rows.keys()]

    acknowledged = Counter((e["batch"], e["epoch"]) for e in ledger.read("recorded"))
    wrong += [f"{lease}: acknowledged, and lost" for lease in acknowledged.keys() - recorded]
    wrong += [f"{lease}: acknowledged {n} times" for lease, n in acknowledged.items() if n > 1]
    for entry in ledger.read("enqueued"):
        job = jobs.get(entry["job"])
        if job is None or job["name"] != entry["name"]:
            wrong.append(f"job {entry['job']}: acknowledged as {entry['name']}, and is {job}")
    for entry in ledger.read("revoked"):
        if jobs.get(entry["job"], {}).get("status") != "REVOKED":
            wrong.append(f"job {entry['job']}: acknowledged as revoked, and is not")
    names = Counter(job["name"] for job in jobs.values())
    wrong += [f"{n} jobs of the name {name}" for name, n in names.items() if n > 1]
    ordered = {row["name"] for row in calls.rows("select name from public.ordered")}
    wrong += [f"{name}: ordered, and no job" for name in ordered - names.keys()]
    if ended:
        wrong += [
            f"job {job['id']} is {job['status']}: {calls.explain(job['id'])}"
            for job in jobs.values()
            if job["status"] not in FINAL
        ]
    return wrong
