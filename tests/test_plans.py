"""What a worker's call reads does not grow with the tables, whatever its plans were made from.

A worker's session lives long, and keeps the plans of its first calls: from when the tables were
empty, or held a few jobs and had just been analysed. Then somebody enqueues a big job. Autovacuum
looks only once a minute, so these tests do without. They count index entries and rows, never time.

Each guard was taken out once, and these tests seen to fail for it:

worker/*.sql: enable_seqscan             few_rows[analysed]: claims, extend, release, ..
worker/*.sql: enable_bitmapscan          few_rows[analysed]: record (every open batch, sorted)
record_batches: each batch on its own    few_rows[..]: record_batches (the whole table)
0008: whether it is closed, in the key    closed_above (every batch that has closed)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

# What a call may read of any one table or index: far above what it needs (some 40), far below what
# is there to be read.
FEW = 300
BATCHES = 3_000
JOBS = 2_000

_READ = b"""
select c.relname, pg_stat_get_xact_tuples_returned(c.oid)
from pg_class c
where c.relnamespace = 'pyjobs_internal'::regnamespace and c.relkind in ('r', 'i')"""


def work_a_little(worker: Calls, owner: Calls) -> None:
    """One call of each kind, on a few small jobs that are over afterwards."""
    job = owner.enqueue("q", items=9, stages=["one", "two"], max_attempts=9)
    first, second, third, fourth, fifth = worker.claim(job, 5)
    worker.rows("select * from pyjobs.extend_lease(%s, 1)", first["batch_id"])
    worker.record(first, next_items=[1])
    worker.record(second, counters={"n": 1})
    worker.do("select pyjobs.release_batch(%s, 1)", third["batch_id"])
    worker.do("select pyjobs.release_batch(%s, 1, 'busy', '1 hour')", fourth["batch_id"])
    record_many(worker, [fifth])
    for batch in worker.ask("w", "q"):
        record_and_claim(worker, batch)
    owner.do("select pyjobs.finalize_job(%s, 'SUCCESS')", job)
    owner.do("select pyjobs.enqueue_jobs('q', '[1, 2, 3]')")
    record_many(worker, claim_many(worker))


def claim_many(worker: Calls) -> list[dict[str, Any]]:
    return worker.rows("select * from pyjobs.claim_jobs('w', '{q}', 3)")


def record_many(worker: Calls, batches: list[dict[str, Any]]) -> None:
    worker.rows(
        "select * from pyjobs.record_batches(%s::bigint[], %s::bigint[])",
        [b["batch_id"] for b in batches],
        [b["lease_epoch"] for b in batches],
    )


def record_and_claim(worker: Calls, batch: dict[str, Any]) -> None:
    worker.rows(
        "select * from pyjobs.record_and_claim(%s, %s, 'w')",
        batch["batch_id"],
        batch["lease_epoch"],
    )


@pytest.mark.parametrize("tables", ["never analysed", "analysed"])
def test_a_call_reads_few_rows_though_its_plan_is_from_when_the_tables_were_small(
    connect, admin, tables
):
    for (table,) in admin.execute(
        "select oid::regclass::text from pg_class"
        " where relnamespace = 'pyjobs_internal'::regnamespace and relkind = 'r'"
    ).fetchall():
        admin.execute(f"alter table {table} set (autovacuum_enabled = off)".encode())
    owner, worker = Calls(connect()), Calls(connect())
    if tables == "analysed":
        another = Calls(connect())
        for _ in range(5):
            work_a_little(another, owner)
        admin.execute("vacuum analyze")
    work_a_little(worker, owner)

    job = owner.enqueue("q", items=BATCHES, stages=["one", "two"], priority=1)
    other = owner.enqueue("other", items=BATCHES)
    assert len(owner.claim(other, BATCHES // 2)) == BATCHES // 2
    ids = owner.value(
        "select pyjobs.enqueue_jobs('q', (select jsonb_agg(i) from generate_series(1, %s) i))", JOBS
    )
    # A row of job_start each, and more than a few of offer.
    assert len(ids) == JOBS
    owner.rows(
        "select c.job_id from unnest(%s::bigint[]) j, pyjobs.claim_next_batch(j, 'v') c",
        ids[::2],
    )

    read: dict[str, dict[str, int]] = {}

    def count(what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        worker.do("begin")
        before = dict(worker.conn.execute(_READ).fetchall())
        result = call(*arguments, **options)
        after = dict(worker.conn.execute(_READ).fetchall())
        worker.do("commit")
        many = {name: n - before[name] for name, n in after.items() if n - before[name] > FEW}
        if many:
            read[what] = many
        return result

    (first,) = count("claim_next_batch", worker.claim, job)
    second, third, fourth, fifth, sixth = count("claim_next_batch, 5", worker.claim, job, 5)
    count("extend_lease", worker.rows, "select pyjobs.extend_lease(%s, 1)", first["batch_id"])
    count("record_batch", worker.record, first)
    count("record_batch, items", worker.record, second, next_items=[1, 2])
    count("release_batch", worker.do, "select pyjobs.release_batch(%s, 1)", third["batch_id"])
    count(
        "release_batch, later",
        worker.do,
        "select pyjobs.release_batch(%s, 1, 'busy', '1 hour')",
        fourth["batch_id"],
    )
    count("record_and_claim", record_and_claim, worker, fifth)
    count("record_batches, 1", record_many, worker, [sixth])
    assert len(count("claim_next_job", worker.ask, "w", "q")) == 1
    owner.do("select pyjobs.pause_job(%s)", job)
    (only,) = count("claim_next_job, small", worker.ask, "w", "q")
    count("record_batch, the last", worker.record, only)
    assert worker.status(only["job_id"]) == "SUCCESS"
    some = count("claim_jobs", claim_many, worker)
    assert len(some) == 3
    count("record_batches", record_many, worker, some)
    assert count("claim_next_job, none", worker.ask, "w", "nothing") == []
    assert read == {}


def test_a_record_does_not_walk_over_what_has_closed_above_it(connect, admin):
    owner, worker = Calls(connect()), Calls(connect())
    admin.execute("alter table pyjobs_internal.batch set (autovacuum_enabled = off)")
    job = owner.enqueue("q", items=4 * FEW)
    first, second, *others = owner.claim(job, 4 * FEW)
    record_many(owner, others)
    admin.execute("vacuum analyze pyjobs_internal.batch")

    worker.do("begin")
    before = dict(worker.conn.execute(_READ).fetchall())
    worker.record(first)
    after = dict(worker.conn.execute(_READ).fetchall())
    worker.do("commit")
    assert {name: n for name, n in after.items() if n - before[name] > FEW} == {}
    # What the last of a stage reads, to add it up, may be all of it.
    worker.record(second)
    assert worker.status(job) == "SUCCESS"
