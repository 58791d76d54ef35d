"""The SQL interface as a table: the public functions, their arguments, which may be repeated.

The client's statements are made from this table alone, by argument names, with what the caller gave
and nothing else, so that defaults stay in SQL. There are few of them, and each is made once.
"""
# ruff: noqa: S608 - the texts are put together from this file's own names, and from nothing else

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from operator import index
from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int8

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# NaN and the infinities are no JSON: refuse them here, where the caller sees which value it was.
_dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Type:
    """An SQL type, and what makes a Python value one that psycopg always sends as the same type.

    The same types make the same prepared statement: a plain int would be sent as any of four.
    """

    sql: str
    adapt: Callable[[Any], Any]


def _jsonb(value: Any) -> Jsonb:
    return value if isinstance(value, Jsonb) else Jsonb(value, dumps=_dumps)


def _numeric(value: Any) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(str(value))


def _bigints(values: Any) -> str:
    # As the text of an array: psycopg would look at each element of a list, for a microsecond or
    # more. Without a type of its own it is always sent in the same way, too.
    return "{" + ",".join([str(index(value)) for value in values]) + "}"


def _same(value: Any) -> Any:
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        # It would pass for a list of its letters.
        raise TypeError(f"expected a list of strings, not the string {value!r}")
    return list(value)


TEXT = Type("text", _same)
TEXTS = Type("text[]", _texts)
INT = Type("int", Int8)
BIGINT = Type("bigint", Int8)
BIGINTS = Type("bigint[]", _bigints)
NUMERIC = Type("numeric", _numeric)
BOOLEAN = Type("boolean", _same)
JSONB = Type("jsonb", _jsonb)
INTERVAL = Type("interval", _same)
TIMESTAMPTZ = Type("timestamptz", _same)
STATUS = Type("pyjobs.job_status", str)


@dataclass(frozen=True, slots=True)
class Call:
    """A public function.

    `required`: how many of the arguments have no default. `repeatable`: after a lost connection,
    when nobody knows whether the call took place, it may be made again without harm.
    """

    name: str
    required: int
    arguments: Mapping[str, Type]
    repeatable: bool


CALLS: dict[str, Call] = {}


def _call(name: str, required: int, /, *, repeatable: bool, **arguments: Type) -> None:
    CALLS[name] = Call(name, required, arguments, repeatable)


# Producers. Not repeatable: what makes a job or adds items would do it twice. A dedupe_key helps
# only while the first job lives.
_call(
    "enqueue_job",
    1,
    repeatable=False,
    queue=TEXT,
    items=JSONB,
    params=JSONB,
    batch_size=INT,
    priority=INT,
    run_at=TIMESTAMPTZ,
    name=TEXT,
    dedupe_key=TEXT,
    failure_threshold=NUMERIC,
    max_attempts=INT,
    stages=TEXTS,
    barriers=TEXTS,
    hold=BOOLEAN,
    seal=BOOLEAN,
)
_call(
    "enqueue_jobs",
    2,
    repeatable=False,
    queue=TEXT,
    params=JSONB,
    priority=INT,
    run_at=TIMESTAMPTZ,
    name=TEXT,
    failure_threshold=NUMERIC,
    max_attempts=INT,
)
_call("add_items", 2, repeatable=False, job_id=BIGINT, items=JSONB, stage=TEXT)
_call("seal_job", 1, repeatable=True, job_id=BIGINT)
_call("release_job", 1, repeatable=True, job_id=BIGINT)

# Workers. A repeated record, extension or return of a batch is fenced by its lease epoch: it raises
# AlreadyRecorded or StaleLease and changes nothing. A claim whose answer was lost is known to
# nobody; its lease runs out, whether it is repeated or not.
_CLAIM_OPTIONS = {"max_batches": INT, "lease": INTERVAL}
_LEASED = {"batch_id": BIGINT, "lease_epoch": BIGINT}
_RESULT = {"failed": JSONB, "counters": JSONB, "next_items": JSONB}
_call("claim_next_job", 1, repeatable=True, worker=TEXT, queues=TEXTS, **_CLAIM_OPTIONS)
_call("claim_next_batch", 2, repeatable=True, job_id=BIGINT, worker=TEXT, **_CLAIM_OPTIONS)
_call("claim_jobs", 1, repeatable=True, worker=TEXT, queues=TEXTS, max_jobs=INT, lease=INTERVAL)
_call("record_batch", 2, repeatable=True, **_LEASED, **_RESULT)
_call(
    "record_and_claim",
    3,
    repeatable=True,
    **_LEASED,
    worker=TEXT,
    **_RESULT,
    **_CLAIM_OPTIONS,
    queues=TEXTS,
)
_call(
    "record_batches",
    2,
    repeatable=True,
    batch_ids=BIGINTS,
    lease_epochs=BIGINTS,
    failed=JSONB,
    counters=JSONB,
)
_call("extend_lease", 2, repeatable=True, **_LEASED, lease=INTERVAL)
_call("release_batch", 2, repeatable=True, **_LEASED, error=TEXT, retry_in=INTERVAL)
_call("report_refused", 3, repeatable=False, **_LEASED, sqlstate=TEXT, detail=TEXT)
_call("reap_leases", 0, repeatable=True)

# Operators. Not repeatable where the answer to the second call would not be that to the first
# (transitioned, PJ003), or where somebody else may have decided otherwise in between.
_call("cancel_job", 1, repeatable=False, job_id=BIGINT, reason=TEXT, grace=INTERVAL)
_call("finalize_job", 1, repeatable=False, job_id=BIGINT, status=STATUS, reason=TEXT)
_call("retry_job", 1, repeatable=False, job_id=BIGINT, failed_only=BOOLEAN)
_call("quarantine_job", 2, repeatable=False, job_id=BIGINT, reason=TEXT)
_call("resolve_job", 3, repeatable=False, job_id=BIGINT, status=STATUS, reason=TEXT)
_call("pause_job", 1, repeatable=False, job_id=BIGINT)
_call("resume_job", 1, repeatable=False, job_id=BIGINT)
_call("pause_queue", 1, repeatable=False, queue=TEXT)
_call("resume_queue", 1, repeatable=False, queue=TEXT)
_call("set_priority", 2, repeatable=False, job_id=BIGINT, priority=INT)
_call("reap", 0, repeatable=False, stale_after=INTERVAL, dry_run=BOOLEAN)
_call("purge_jobs", 1, repeatable=False, older_than=INTERVAL)

# Readers.
_call("job_progress", 1, repeatable=True, job_id=BIGINT)
_call("explain_job", 1, repeatable=True, job_id=BIGINT)
_call("audit_job", 0, repeatable=True, job_id=BIGINT)
_call("job_history", 1, repeatable=True, job_id=BIGINT)
_call("queue_stats", 0, repeatable=True)
_call("active_workers", 0, repeatable=True)


@cache
def _statement(name: str, given: tuple[str, ...]) -> bytes:
    arguments = CALLS[name].arguments
    listed = ", ".join(f"{key} => %({key})s::{arguments[key].sql}" for key in given)
    return f"select * from pyjobs.{name}({listed})".encode()


def prepare_call(name: str, arguments: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return the statement and its parameters for a call with these arguments.

    An optional argument that is None is left out: SQL has its default.
    """
    call = CALLS[name]
    values = {}
    for position, (key, kind) in enumerate(call.arguments.items()):
        value = arguments.get(key)
        if value is not None:
            values[key] = kind.adapt(value)
        elif position < call.required:
            values[key] = None
    return _statement(name, tuple(values)), values


_FILTERS = {
    "queue": "queue = %(queue)s::text",
    "status": "status = any (%(status)s::pyjobs.job_status[])",
    "name": "name = %(name)s::text",
    "before": "id < %(before)s::bigint",
}


@cache
def _listing(given: tuple[str, ...]) -> bytes:
    where = " and ".join(_FILTERS[key] for key in given) or "true"
    return (
        f"select * from pyjobs.job where {where} order by id desc limit %(limit)s::bigint".encode()
    )


def prepare_listing(
    queue: str | None,
    status: Sequence[str] | str | None,
    name: str | None,
    before: int | None,
    limit: int,
) -> tuple[bytes, dict[str, Any]]:
    """Return the statement and its parameters for a list of jobs, by what is given."""
    given: dict[str, Any] = {}
    if queue is not None:
        given["queue"] = queue
    if status is not None:
        given["status"] = [str(status)] if isinstance(status, str) else [str(one) for one in status]
    if name is not None:
        given["name"] = name
    if before is not None:
        given["before"] = Int8(before)
    return _listing(tuple(given)), {**given, "limit": Int8(limit)}


ONE_JOB = b"select * from pyjobs.job where id = %(job_id)s::bigint"
