"""What each function costs, in what does not depend on the clock: pages, log, rows.

Every call is made on the same tables (``prepare``), several times, each time undone; what the last
one took is its cost. ``costs.json`` has what it took when that was last looked at, for the
PostgreSQL that the tests bring; ``python -m tests.costs --write`` writes it anew.

    pages    of tables, indexes and the catalogue, looked at
    records  written to the write-ahead log
    log      bytes of it
    written  rows of pyjobs' tables that are new or changed
    locked   rows that were locked, and not changed

The same calls are made on tables ten times as large. What may grow with them is listed (``GROWS``).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.calls import Calls

if TYPE_CHECKING:
    import psycopg

KEPT = Path(__file__).with_name("costs.json")
#: The major version of the server that the kept costs are of.
VERSION = 18
#: What may differ by, before somebody has to look: a share, and so many.
SHARE, MARGIN = 0.1, {"pages": 4, "records": 1, "log": 100, "written": 0, "locked": 0}

_REPEATS = 6


@dataclass(frozen=True)
class Cost:
    """What one call took."""

    pages: int
    records: int
    log: int
    written: int
    locked: int


# Jobs: 1 is large, 2 as large and not sealed, 3 has failed, the small ones come after. The first
# batches of the large job and the first of the small ones are leased.


def calls(size: int) -> dict[str, str]:
    """The calls, by name."""
    first_small = 2 * size + 2
    numbers = "(select jsonb_agg(i) from generate_series(1, {}) i)".format

    def leases(first: int) -> str:
        last = first + 99
        return (
            f"(select array_agg(i::bigint) from generate_series({first}, {last}) i),"
            " array_fill(1::bigint, array[100])"
        )

    failed = '[{"index": 0, "error": "no"}]'
    return {
        "enqueue_job": "enqueue_job('q', '[1]')",
        "enqueue_job, plain": "enqueue_job('q')",
        "enqueue_job, 1,000 batches": f"enqueue_job('q', {numbers(1000)})",
        "enqueue_jobs, 100": f"enqueue_jobs('q', {numbers(100)})",
        "add_items": "add_items(2, '[1]')",
        # As it lies in a table, packed: it is to be unpacked once.
        "add_items, 1,000 from a table": "add_items(2, (select items from public.kept_items))",
        "seal_job": "seal_job(2)",
        "claim_next_job": "claim_next_job('w', '{q}')",
        "claim_next_job, none": "claim_next_job('w', '{nothing}')",
        "claim_next_batch": "claim_next_batch(1, 'w')",
        "claim_next_batch, 100": "claim_next_batch(1, 'w', 100)",
        "claim_jobs, 100": "claim_jobs('w', '{small}', 100)",
        "record_batch": "record_batch(1, 1)",
        "record_batch, result": f"record_batch(1, 1, '{failed}', '{{\"n\": 1}}')",
        "record_batch, items": "record_batch(1, 1, next_items => '[1]')",
        "record_batch, the last": f"record_batch({first_small}, 1)",
        "record_batches, 100": f"record_batches({leases(1)})",
        "record_batches, 100 jobs": f"record_batches({leases(first_small)})",
        "record_and_claim": "record_and_claim(1, 1, 'w')",
        "record_and_claim, the next job": (
            f"record_and_claim({first_small}, 1, 'w', queues => '{{small}}')"
        ),
        "extend_lease": "extend_lease(1, 1)",
        "release_batch": "release_batch(1, 1)",
        "release_batch, error": "release_batch(1, 1, 'bad', '1 hour')",
        "report_refused": "report_refused(1, 7, 'PJ001')",
        "reap_leases": "reap_leases()",
        "pause_job": "pause_job(1)",
        "set_priority": "set_priority(1, 5)",
        "quarantine_job": "quarantine_job(1, 'odd')",
        "cancel_job": "cancel_job(1)",
        "cancel_job, at once": "cancel_job(1, null, '0')",
        "finalize_job": "finalize_job(1, 'FAILURE', 'so')",
        "retry_job": "retry_job(3)",
        "retry_job, failed items": "retry_job(3, true)",
        "explain_job": "explain_job(1)",
        "job_history": "job_history(1)",
        "job_progress": "job_progress(1)",
        "purge_jobs": "purge_jobs('0')",
        "queue_stats": "queue_stats()",
    }


#: Those whose cost is that of all that is there.
GROWS = {"queue_stats"}
#: By how many pages more than others may grow what counts up to some bound: what waits, to 10,001.
BOUNDED = {"explain_job": 60}


def prepare(conn: psycopg.Connection[Any], size: int) -> None:
    """The tables: two large jobs of ``size`` batches, and a tenth as many small ones."""
    owner = Calls(conn)
    numbers = "(select jsonb_agg(i) from generate_series(1, {}) i)"
    for queue, sealed in (("q", "true"), ("open", "false")):
        owner.do(
            f"select pyjobs.enqueue_job('{queue}', {numbers.format(size)},"
            f" stages => '{{one,two}}', seal => {sealed})"
        )
    failing = owner.enqueue("failing", items=1)
    owner.do(f"select pyjobs.enqueue_jobs('small', {numbers.format(max(size // 10, 400))})")
    for _ in range(2):
        owner.do("select from pyjobs.claim_jobs('v', '{small}', 110)")
    # Leased, and recorded ones.
    owner.do(
        "select count(pyjobs.record_batch(c.batch_id, 1)) from"
        " (select batch_id, row_number() over () as no"
        " from pyjobs.claim_next_batch(1, 'v', 220)) c where c.no > 110"
    )
    (lease,) = owner.claim(failing)
    owner.record(lease, failed=[0])
    owner.do(
        "create table public.kept_items as"
        " select jsonb_agg(md5(i::text)) as items from generate_series(1, 1000) i"
    )
    # Marks of offers that newer ones stand for.
    owner.do("select from pyjobs.reap()")
    # Whether a worker's name is written depends on the clock.
    owner.ask("w", "nothing")
    owner.do("update pyjobs_internal.worker set last_seen = 'infinity', last_empty_at = 'infinity'")


def measure(conn: psycopg.Connection[Any], call: str) -> Cost:
    """What a call takes in this session; nothing of it is left."""
    explain = (
        f"explain (analyze, buffers, wal, timing off, format json) select * from pyjobs.{call}"
    )
    cost: Cost | None = None
    for _ in range(_REPEATS):
        conn.execute(_LATER)
        conn.execute("begin")
        (top,) = conn.execute(
            "select pg_current_xact_id()::text::bigint % (1::bigint << 32)"
        ).fetchone()  # type: ignore[misc]
        ((plan,),) = conn.execute(explain.encode()).fetchone()  # type: ignore[misc]
        root = plan["Plan"]
        written = locked = 0
        for (table,) in conn.execute(_TABLES).fetchall():
            new, held = conn.execute(
                _ROWS.replace("TABLE", table).encode(), {"top": top}
            ).fetchone()  # type: ignore[misc]
            written, locked = written + new, locked + held
        conn.execute("rollback")
        cost = Cost(
            root["Shared Hit Blocks"] + root["Shared Read Blocks"],
            root["WAL Records"],
            root["WAL Bytes"],
            written,
            locked,
        )
    assert cost is not None
    return cost


def nodes(conn: psycopg.Connection[Any], call: str) -> list[dict[str, Any]]:
    """Every node of every plan that a call runs, the statements inside of functions too.

    Of a superuser's session, as auto_explain is the server's. Nothing of the call is left.
    """
    texts: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        texts.append(notice.message_primary or "")

    conn.execute(_LATER)
    conn.execute("load 'auto_explain'")
    conn.add_notice_handler(hear)
    conn.execute("begin")
    for setting in _EXPLAIN_ALL:
        conn.execute(f"set local {setting}".encode())
    conn.execute(f"select * from pyjobs.{call}".encode())
    conn.execute("rollback")
    conn.remove_notice_handler(hear)
    found: list[dict[str, Any]] = []
    for text in texts:
        if text.startswith("duration:"):
            waiting = [json.loads(text[text.index("{") :])["Plan"]]
            while waiting:
                node = waiting.pop()
                found.append(node)
                waiting += node.get("Plans", [])
    return found


_EXPLAIN_ALL = (
    "auto_explain.log_min_duration = 0",
    "auto_explain.log_nested_statements = on",
    "auto_explain.log_analyze = on",
    "auto_explain.log_timing = off",
    "auto_explain.log_format = json",
    "client_min_messages = log",
)
# What was undone leaves its xid in the batches, and claims take those last while it is recent.
_LATER = b"""
do $$ begin for i in 1 .. 210 loop perform pg_current_xact_id(); commit; end loop; end $$"""
_TABLES = b"""
select oid::regclass::text from pg_class
where relnamespace = 'pyjobs_internal'::regnamespace and relkind = 'r' order by 1"""
_ROWS = """
select count(*) filter (where xmin::text::bigint >= %(top)s),
    count(*) filter (where xmin::text::bigint < %(top)s and xmax::text::bigint >= %(top)s)
from TABLE"""


def all_costs(conn: psycopg.Connection[Any], size: int) -> dict[str, Cost]:
    """The cost of every call, on tables that are made here."""
    prepare(conn, size)
    conn.execute("vacuum analyze")
    return {name: measure(conn, call) for name, call in calls(size).items()}


def kept() -> dict[str, Cost]:
    """What they took when somebody last looked."""
    return {name: Cost(**cost) for name, cost in json.loads(KEPT.read_text("utf-8")).items()}


def write(costs: dict[str, Cost]) -> None:
    """Keep these."""
    lines = [f"{json.dumps(name)}: {json.dumps(asdict(cost))}" for name, cost in costs.items()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def differences(was: dict[str, Cost], now: dict[str, Cost]) -> list[str]:
    """Where the costs are others, by more than the margin."""
    found = []
    for name in sorted(was.keys() | now.keys()):
        if name not in was or name not in now:
            found.append(f"{name}: only one of them has it")
            continue
        for what, before in asdict(was[name]).items():
            after = getattr(now[name], what)
            if abs(after - before) > SHARE * before + MARGIN[what]:
                found.append(f"{name}: {after} {what}, not {before}")
    return found
