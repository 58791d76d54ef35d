"""The SQL interface is the contract: names, arguments, defaults and results, as they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

    Connection = psycopg.Connection[Any]

CLAIM = (
    "job_id bigint, run integer, batch_id bigint, lease_epoch bigint, attempt integer, queue text,"
    " stage text, params jsonb, items jsonb, lease_expires_at timestamp with time zone"
)
STATUS = "pyjobs.job_status"

# Each function: its arguments with their defaults, and its result.
FUNCTIONS = {
    "enqueue_job": (
        "queue text, items jsonb DEFAULT NULL::jsonb, params jsonb DEFAULT '{}'::jsonb,"
        " batch_size integer DEFAULT 1, priority integer DEFAULT 0,"
        " run_at timestamp with time zone DEFAULT now(), name text DEFAULT NULL::text,"
        " dedupe_key text DEFAULT NULL::text, failure_threshold numeric DEFAULT 0.5,"
        " max_attempts integer DEFAULT 3, stages text[] DEFAULT '{process}'::text[],"
        " barriers text[] DEFAULT '{}'::text[], hold boolean DEFAULT false,"
        " seal boolean DEFAULT true",
        "bigint",
    ),
    "enqueue_jobs": ("queue text, params jsonb", "bigint[]"),
    "add_items": ("job_id bigint, items jsonb, stage text DEFAULT NULL::text", STATUS),
    "seal_job": ("job_id bigint", STATUS),
    "release_job": ("job_id bigint", STATUS),
    "claim_next_job": (
        "worker text, queues text[] DEFAULT '{default}'::text[], max_batches integer DEFAULT 1,"
        " lease interval DEFAULT '00:01:00'::interval",
        CLAIM,
    ),
    "claim_next_batch": (
        "job_id bigint, worker text, max_batches integer DEFAULT 1,"
        " lease interval DEFAULT '00:01:00'::interval",
        CLAIM,
    ),
    "claim_jobs": ("worker text, queues text[], max_jobs integer, lease interval", CLAIM),
    "record_batch": (
        "batch_id bigint, lease_epoch bigint, failed jsonb DEFAULT '[]'::jsonb,"
        " counters jsonb DEFAULT '{}'::jsonb, next_items jsonb DEFAULT NULL::jsonb",
        f"job_id bigint, job_status {STATUS}, stage_done boolean, job_done boolean",
    ),
    "record_and_claim": (
        "batch_id bigint, lease_epoch bigint, worker text, failed jsonb DEFAULT '[]'::jsonb,"
        " counters jsonb DEFAULT '{}'::jsonb, next_items jsonb DEFAULT NULL::jsonb,"
        " max_batches integer DEFAULT 1, lease interval DEFAULT '00:01:00'::interval,"
        " queues text[] DEFAULT NULL::text[]",
        f"{CLAIM}, recorded_status {STATUS}",
    ),
    "record_batches": (
        "batch_ids bigint[], lease_epochs bigint[], failed jsonb DEFAULT NULL::jsonb,"
        " counters jsonb DEFAULT NULL::jsonb",
        "batch_id bigint, outcome text",
    ),
    "extend_lease": (
        "batch_id bigint, lease_epoch bigint, lease interval",
        f"lease_expires_at timestamp with time zone, job_status {STATUS}",
    ),
    "release_batch": (
        "batch_id bigint, lease_epoch bigint, error text DEFAULT NULL::text,"
        " retry_in interval DEFAULT '00:00:00'::interval",
        STATUS,
    ),
    "report_refused": (
        "batch_id bigint, lease_epoch bigint, sqlstate text, detail text DEFAULT NULL::text",
        "void",
    ),
    "reap_leases": ("", "action text, job_id bigint, batch_id bigint, detail text"),
    "cancel_job": (
        "job_id bigint, reason text DEFAULT NULL::text,"
        " grace interval DEFAULT '00:00:30'::interval",
        STATUS,
    ),
    "finalize_job": (
        f"job_id bigint, status {STATUS} DEFAULT NULL::{STATUS}, reason text DEFAULT NULL::text",
        f"transitioned boolean, status {STATUS}",
    ),
    "retry_job": ("job_id bigint, failed_only boolean DEFAULT false", STATUS),
    "quarantine_job": ("job_id bigint, reason text", STATUS),
    "resolve_job": (f"job_id bigint, status {STATUS}, reason text", STATUS),
    "pause_job": ("job_id bigint", STATUS),
    "resume_job": ("job_id bigint", STATUS),
    "pause_queue": ("queue text", "void"),
    "resume_queue": ("queue text", "void"),
    "set_priority": ("job_id bigint, priority integer", STATUS),
    "reap": (
        "stale_after interval DEFAULT NULL::interval, dry_run boolean DEFAULT false",
        "action text, job_id bigint, batch_id bigint, detail text",
    ),
    "job_progress": ("job_id bigint", "jsonb"),
    "explain_job": ("job_id bigint", "finding text, evidence text, remedy text"),
    "audit_job": (
        "job_id bigint DEFAULT NULL::bigint",
        "job_id bigint, stage text, what text, recorded text, recomputed text",
    ),
    "job_history": (
        "job_id bigint",
        f"at timestamp with time zone, run integer, from_status {STATUS}, to_status {STATUS},"
        " session_role text, by text, reason text",
    ),
    "queue_stats": (
        "",
        "queue text, paused boolean, waiting_jobs bigint, running_jobs bigint,"
        " pending_batches bigint, leased_batches bigint,"
        " oldest_waiting timestamp with time zone, workers bigint",
    ),
    "active_workers": (
        "",
        "worker text, queues text[], last_seen timestamp with time zone, leased_batches bigint",
    ),
    "purge_jobs": ("older_than interval", "bigint"),
}

# Where the contract gives no default, one may be added: the call with the argument still works.
MORE_DEFAULTS = {"claim_jobs", "extend_lease", "enqueue_jobs"}


def test_there_is_no_function_beside_these(db: Connection) -> None:
    """One of each name, so that no overload is left behind either."""
    names = db.execute(
        "select proname::text from pg_proc where pronamespace = 'pyjobs'::regnamespace order by 1"
    ).fetchall()
    assert [name for (name,) in names] == sorted(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_and_result_are_the_contracts(db: Connection, name: str) -> None:
    """Names, order, types and defaults; the columns of the result."""
    arguments, result = FUNCTIONS[name]
    row = db.execute(
        "select pg_get_function_arguments(p.oid),"
        " coalesce((select string_agg(format('%%s %%s', a.attname,"
        "     format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum)"
        "   from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0),"
        "   format_type(t.oid, null))"
        " from pg_proc p join pg_type t on t.oid = p.prorettype"
        " where p.pronamespace = 'pyjobs'::regnamespace and p.proname = %s",
        [name],
    ).fetchone()
    assert row is not None
    if name in MORE_DEFAULTS:
        without = [a.split(" DEFAULT ")[0] for a in row[0].split(", ")]
        assert ", ".join(without).startswith(arguments)
    else:
        assert row[0] == arguments
    assert row[1] == result


def test_the_two_relations_have_the_columns_that_people_look_for(db: Connection) -> None:
    """`pyjobs.job` and `pyjobs.batch`."""
    for relation, columns in (
        ("job", {"id", "queue", "status", "run"}),
        ("batch", {"id", "job_id", "stage"}),
    ):
        cursor = db.execute(f"select * from pyjobs.{relation}".encode())
        assert columns <= {column.name for column in cursor.description or ()}


# One call for each state, as section by section of the contract says.
def _stale(calls: Calls) -> str:
    batch = calls.claim(calls.enqueue("q"))[0]
    return f"select pyjobs.record_batch({batch['batch_id']}, {batch['lease_epoch'] + 1})"


def _already(calls: Calls) -> str:
    batch = calls.claim(calls.enqueue("q"))[0]
    calls.record(batch)
    return f"select pyjobs.record_batch({batch['batch_id']}, {batch['lease_epoch']})"


def _illegal(calls: Calls) -> str:
    return f"select pyjobs.retry_job({calls.enqueue('q')})"


def _unknown(_: Calls) -> str:
    return "select pyjobs.job_progress(999)"


def _invalid(_: Calls) -> str:
    return "select pyjobs.enqueue_job('')"


def _not_accepted(calls: Calls) -> str:
    return f"select pyjobs.add_items({calls.enqueue('q')}, '[1]')"


def _isolation(_: Calls) -> str:
    return "begin isolation level repeatable read; select * from pyjobs.claim_next_job('w'); commit"


@pytest.mark.parametrize(
    ("sqlstate", "make"),
    [
        ("PJ001", _stale),
        ("PJ002", _already),
        ("PJ003", _illegal),
        ("PJ004", _unknown),
        ("PJ005", _invalid),
        ("PJ006", _not_accepted),
        ("PJ007", _isolation),
    ],
)
def test_each_error_has_its_state_and_says_what_to_do(
    db: Connection, sqlstate: str, make: Callable[[Calls], str]
) -> None:
    """A message, DETAIL and HINT."""
    query = make(Calls(db))
    with pytest.raises(psycopg.Error) as raised:
        db.execute(query.encode())
    assert raised.value.sqlstate == sqlstate
    assert raised.value.diag.message_detail
    assert raised.value.diag.message_hint


CHANGING = [
    "claim_next_job('w')",
    "claim_next_batch({job}, 'w')",
    "claim_jobs('w', '{{q}}', 1, '1 minute')",
    "record_batch({batch}, 1)",
    "record_and_claim({batch}, 1, 'w')",
    "record_batches(array[{batch}], array[1])",
    "extend_lease({batch}, 1, '1 minute')",
    "release_batch({batch}, 1)",
    "reap_leases()",
    "reap()",
    "cancel_job({job})",
    "finalize_job({job})",
    "retry_job({job})",
    "quarantine_job({job}, 'x')",
    "resolve_job({job}, 'RETRY', 'x')",
    "pause_job({job})",
    "resume_job({job})",
    "set_priority({job}, 5)",
    "add_items({job}, '[1]')",
    "seal_job({job})",
    "release_job({job})",
]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_what_needs_fresh_snapshots_is_refused_where_there_are_none(
    db: Connection, level: str
) -> None:
    """Each changing call, and nothing else: reading and enqueueing work at any level."""
    calls = Calls(db)
    job = calls.enqueue("q", [1], seal=False)
    batch = calls.claim(job)[0]["batch_id"]
    for call in CHANGING:
        query = f"select * from pyjobs.{call.format(job=job, batch=batch)}"
        with pytest.raises(psycopg.Error) as raised:
            db.execute(f"begin isolation level {level}; {query}".encode())
        db.rollback()
        assert raised.value.sqlstate == "PJ007", call
    with db.transaction():
        db.execute(f"set transaction isolation level {level}".encode())
        made = calls.enqueue("q", dedupe_key="k")
        assert calls.enqueue("q", dedupe_key="k") == made
        assert calls.enqueue("empty", []) > made
        calls.do("""select pyjobs.enqueue_jobs('q', '[1, 2]')""")
        assert calls.progress(made)["summary"]["status"] == "PENDING"
