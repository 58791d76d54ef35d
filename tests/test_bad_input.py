"""Bad input gets PJ005, naming the argument and what it should be, and changes nothing.

The table holds every argument of every public function that can be wrong; a test reads the
catalogue, so that a new function or argument without a line here is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.calls import Calls

if TYPE_CHECKING:
    Connection = psycopg.Connection[Any]

NAME = ["null", "''", "repeat('x', 201)"]
NAMES = [
    "null",
    "'{}'",
    "'{a,null}'",
    "'{a,a}'",
    "'{{a},{b}}'",
    "array['']",
    "array_fill('x'::text, array[101])",
    "'{null}'",
    "array[repeat('x', 201)]",
]
COUNT = ["null", "0", "-1", "1000001"]
LEASE = ["null", "'0'", "'-1 second'", "'1 day 1 second'", "'1 month'", "'infinity'", "'-infinity'"]
SPAN = ["null", "'-1 second'", "'366 days'", "'infinity'", "'-infinity'"]
FAILED = [
    "null",
    "'null'",
    "'{}'",
    "'3'",
    "'[3]'",
    "'[[]]'",
    "'[null]'",
    """'[{"index": 0}]'""",
    """'[{"error": "x"}]'""",
    """'[{"index": "0", "error": "x"}]'""",
    """'[{"index": -1, "error": "x"}]'""",
    """'[{"index": 0.5, "error": "x"}]'""",
    """'[{"index": 1e400, "error": "x"}]'""",
    """'[{"index": 0, "error": 1}]'""",
    """'[{"index": 0, "error": null}]'""",
    """'[{"index": 0, "error": "x", "more": 1}]'""",
    """'[{"index": 0, "error": "x"}, {"index": 0, "error": "y"}]'""",
    """'[{"index": 2, "error": "beyond the batch"}]'""",
]
COUNTERS = [
    "null",
    "'null'",
    "'[]'",
    "'3'",
    """'{"a": -1}'""",
    """'{"a": 0.5}'""",
    """'{"a": "1"}'""",
    """'{"a": null}'""",
    """'{"a": 9223372036854775808}'""",
    """'{"a": 1e400}'""",
    """'{"": 1}'""",
    """'{"a": {"b": 1}}'""",
]
ITEMS = ["'null'", "'{}'", "'3'", "'\"x\"'"]
THRESHOLD = ["null", "-0.1", "1.1", "'NaN'", "1e300"]
ATTEMPTS = ["null", "0", "-1", "1001"]
TIME = ["null", "'infinity'", "'-infinity'"]
LONG_TEXT = ["repeat('x', 10001)"]
NULL = ["null"]

JOB, BATCH, EPOCH = "(select max(id) from pyjobs.job)", "(select max(id) from pyjobs.batch)", "1"
RESULT = {"failed": ("'[]'", FAILED), "counters": ("'{}'", COUNTERS)}
HELD = {"batch_id": (BATCH, NULL), "lease_epoch": (EPOCH, NULL)}
ONE_JOB = {"job_id": (JOB, NULL)}

# Each function's arguments: what is right, and what is wrong.
FUNCTIONS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "enqueue_job": {
        "queue": ("'q'", NAME),
        "items": ("'[1]'", ITEMS),
        "params": ("'{}'", NULL),
        "batch_size": ("1", COUNT),
        "priority": ("0", NULL),
        "run_at": ("now()", TIME),
        "name": ("null", NAME[1:]),
        "dedupe_key": ("null", NAME[1:]),
        "failure_threshold": ("0.5", THRESHOLD),
        "max_attempts": ("3", ATTEMPTS),
        "stages": ("'{a,b}'", NAMES),
        "barriers": ("'{b}'", [NAMES[0], "'{c}'", *NAMES[2:]]),
        "hold": ("false", NULL),
        "seal": ("true", NULL),
    },
    "enqueue_jobs": {
        "queue": ("'q'", NAME),
        "params": ("'[1]'", ["null", *ITEMS]),
        "priority": ("0", NULL),
        "run_at": ("now()", TIME),
        "name": ("null", NAME[1:]),
        "failure_threshold": ("0.5", THRESHOLD),
        "max_attempts": ("3", ATTEMPTS),
    },
    "add_items": {
        **ONE_JOB,
        "items": ("'[1]'", ["null", *ITEMS]),
        "stage": ("null", ["'none such'", "''"]),
    },
    "seal_job": ONE_JOB,
    "release_job": ONE_JOB,
    "claim_next_job": {
        "worker": ("'w'", NAME),
        "queues": ("'{none}'", NAMES),
        "max_batches": ("1", COUNT),
        "lease": ("'1 minute'", LEASE),
    },
    "claim_jobs": {
        "worker": ("'w'", NAME),
        "queues": ("'{none}'", NAMES),
        "max_jobs": ("1", COUNT),
        "lease": ("'1 minute'", LEASE),
    },
    "claim_next_batch": {
        **ONE_JOB,
        "worker": ("'w'", NAME),
        "max_batches": ("1", COUNT),
        "lease": ("'1 minute'", LEASE),
    },
    "record_batch": {
        **HELD,
        **RESULT,
        "next_items": ("null", [*ITEMS, "'[]'"]),
    },
    "record_and_claim": {
        **HELD,
        "worker": ("'w'", NAME),
        **RESULT,
        "next_items": ("null", [*ITEMS, "'[]'"]),
        "max_batches": ("1", COUNT),
        "lease": ("'1 minute'", LEASE),
        "queues": ("null", [name for name in NAMES if name != "null"]),
    },
    "record_batches": {
        "batch_ids": (
            f"array[{BATCH}]",
            ["null", "'{}'", "'{null}'", "'{{1},{2}}'", "'{1,1}'", "'{1,2}'"],
        ),
        "lease_epochs": ("'{1}'", ["null", "'{}'", "'{null}'", "'{{1}}'", "'{1,1}'"]),
        "failed": (
            "null",
            ["'{}'", "'[]'", "'[[], []]'", *[f"('[' || {f} || ']')::jsonb" for f in FAILED[1:]]],
        ),
        "counters": (
            "null",
            ["'{}'", "'[]'", "'[{}, {}]'", *[f"('[' || {c} || ']')::jsonb" for c in COUNTERS[1:]]],
        ),
    },
    "extend_lease": {**HELD, "lease": ("'1 minute'", LEASE)},
    "release_batch": {**HELD, "error": ("null", LONG_TEXT), "retry_in": ("'0'", SPAN)},
    "report_refused": {
        **HELD,
        "sqlstate": ("'PJ001'", ["null", "''", "'pj001'", "'PJ0011'", "'PJ 01'"]),
        "detail": ("null", LONG_TEXT),
    },
    "reap_leases": {},
    "cancel_job": {**ONE_JOB, "reason": ("null", LONG_TEXT), "grace": ("'0'", SPAN)},
    "finalize_job": {
        **ONE_JOB,
        "status": ("'FAILURE'", ["'STARTED'", "'CREATED'", "'UNKNOWN'", "'RETRY'"]),
        "reason": ("null", LONG_TEXT),
    },
    "retry_job": {**ONE_JOB, "failed_only": ("false", NULL)},
    "quarantine_job": {**ONE_JOB, "reason": ("'why'", ["null", "''", *LONG_TEXT])},
    "resolve_job": {
        **ONE_JOB,
        "status": ("'RETRY'", ["null", "'SUCCESS'", "'STARTED'", "'REVOKED'"]),
        "reason": ("'why'", ["null", "''", *LONG_TEXT]),
    },
    "pause_job": ONE_JOB,
    "resume_job": ONE_JOB,
    "pause_queue": {"queue": ("'q'", NAME)},
    "resume_queue": {"queue": ("'q'", NAME)},
    "set_priority": {**ONE_JOB, "priority": ("1", NULL)},
    "reap": {"stale_after": ("null", SPAN[1:]), "dry_run": ("false", NULL)},
    "purge_jobs": {"older_than": ("'1 day'", ["null", "'-1 second'", "'infinity'", "'-infinity'"])},
    "job_progress": ONE_JOB,
    "explain_job": ONE_JOB,
    "audit_job": {"job_id": (JOB, [])},
    "job_history": ONE_JOB,
    "queue_stats": {},
    "active_workers": {},
}

UNKNOWN_IDS = {
    name: argument
    for name, arguments in FUNCTIONS.items()
    for argument in ("job_id", "batch_id")
    if argument in arguments
}


@pytest.fixture
def calls(db: Connection) -> Calls:
    """A database with one job, unsealed, whose one batch of two items is leased under epoch 1."""
    calls = Calls(db)
    job = calls.enqueue("one", [1, 2], batch_size=2, seal=False)
    calls.claim(job)
    return calls


def everything(calls: Calls) -> dict[str, str]:
    """What all tables hold."""
    tables = calls.rows(
        "select format('%I.%I', schemaname, tablename) as name from pg_tables"
        " where schemaname like 'pyjobs%'".replace("%I", "%%I").replace("pyjobs%", "pyjobs%%")
    )
    return {
        table["name"]: calls.value(
            f"select coalesce(string_agg(t::text, '|' order by t::text), '') from {table['name']} t"
        )
        for table in tables
    }


def call(name: str, arguments: dict[str, str]) -> str:
    """The call's text."""
    return f"select * from pyjobs.{name}({', '.join(f'{a} => {v}' for a, v in arguments.items())})"


def refusal(calls: Calls, query: str) -> psycopg.Error | None:
    """How a call is refused; None where it is not, and then it is undone."""
    try:
        with calls.conn.transaction(force_rollback=True):
            calls.conn.execute(query.encode())
    except psycopg.Error as error:
        return error
    return None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_argument_is_named_and_nothing_is_changed(calls: Calls, name: str) -> None:
    """One argument at a time; with all of them right the call is not refused as bad input."""
    right = {argument: value for argument, (value, _) in FUNCTIONS[name].items()}
    accepted = refusal(calls, call(name, right))
    assert accepted is None or accepted.sqlstate in {"PJ003", "PJ006"}, accepted

    before = everything(calls)
    has_infinite_intervals = calls.conn.info.server_version >= 170000
    for argument, (_, wrongs) in FUNCTIONS[name].items():
        for wrong in wrongs:
            if "infinity" in wrong and argument != "run_at" and not has_infinite_intervals:
                continue
            query = call(name, {**right, argument: wrong})
            error = refusal(calls, query)
            assert error is not None, query
            # Two arrays of different lengths: the second one is named.
            named = "lease_epochs" if wrong == "'{1,2}'" else argument
            assert (error.sqlstate, f"argument {named} must be" in str(error)) == ("PJ005", True), (
                query,
                error,
            )
            assert error.diag.message_detail, query
            assert error.diag.message_hint, query
    assert everything(calls) == before


def test_a_wrong_argument_of_a_plain_job_is_named(calls: Calls) -> None:
    """With nothing else given: such a job is checked, and made, by a shorter way."""
    before = everything(calls)
    for argument, (_, wrongs) in FUNCTIONS["enqueue_job"].items():
        for wrong in wrongs:
            query = call("enqueue_job", {"queue": "'q'", argument: wrong})
            error = refusal(calls, query)
            assert error is not None, query
            assert (error.sqlstate, f"argument {argument} must be" in str(error)) == ("PJ005", True)
    assert everything(calls) == before


@pytest.mark.parametrize("name", UNKNOWN_IDS)
def test_an_unknown_id_is_said_to_be_unknown(calls: Calls, name: str) -> None:
    """PJ004, with what to do."""
    right = {argument: value for argument, (value, _) in FUNCTIONS[name].items()}
    for unknown in ("0", "-1", "9223372036854775807"):
        error = refusal(calls, call(name, {**right, UNKNOWN_IDS[name]: unknown}))
        if name == "audit_job":
            continue
        assert error is not None, name
        assert error.sqlstate == "PJ004", error
        assert error.diag.message_hint


def test_an_unknown_batch_among_many_refuses_them_all(calls: Calls) -> None:
    """record_batches records none of the others."""
    before = everything(calls)
    error = refusal(calls, f"select * from pyjobs.record_batches(array[{BATCH}, 999], array[1, 1])")
    assert error is not None
    assert error.sqlstate == "PJ004"
    assert everything(calls) == before


def test_next_items_where_there_is_a_next_stage_must_be_an_array(db: Connection) -> None:
    """In the last stage nothing is taken (above); elsewhere an array."""
    calls = Calls(db)
    job = calls.enqueue("q", [1], stages=["a", "b"])
    calls.claim(job)
    for wrong in ITEMS:
        error = refusal(
            calls, f"select * from pyjobs.record_batch({BATCH}, 1, next_items => {wrong})"
        )
        assert error is not None
        assert error.sqlstate == "PJ005"
        assert "argument next_items must be" in str(error)
    assert refusal(calls, f"select pyjobs.record_batch({BATCH}, 1, next_items => '[]')") is None


def test_every_argument_of_every_function_is_in_the_table(db: Connection) -> None:
    """As the catalogue has them, in their order."""
    in_catalogue = dict(
        db.execute(
            "select p.proname::text, p.proargnames[1:p.pronargs]::text[] from pg_proc p"
            " where p.pronamespace = 'pyjobs'::regnamespace"
        ).fetchall()
    )
    assert {name: list(arguments) for name, arguments in FUNCTIONS.items()} == {
        name: arguments or [] for name, arguments in in_catalogue.items()
    }
