"""Work for the workloads: jobs of so many batches, and what leases or finishes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import Connection

QUEUE = "bench"
#: The most that one call hands in, so that neither side keeps much more in memory.
CHUNK = 200_000
#: A batch's only item, as a list of them in SQL: some fifty bytes, as a path of an image is.
ITEMS = """(select jsonb_agg('survey/2026/plate-' || lpad(n::text, 9, '0') || '/image.png')
            from generate_series(1, %s) n)"""


#: The same as params of jobs, in the form that the adapters' handlers read.
PARAMS = """(select jsonb_agg(jsonb_build_object('at', 0, 'image',
                'survey/2026/plate-' || lpad(n::text, 9, '0') || '/image.png'))
            from generate_series(1, %s) n)"""


def one(conn: Connection[Any], query: str, *values: Any) -> Any:
    """The first column of the only row."""
    row = conn.execute(query.encode(), values).fetchone()
    assert row is not None
    return row[0]


def big_job(conn: Connection[Any], batches: int, *, sealed: bool = True) -> int:
    """A job of so many batches of one item."""
    job = one(conn, "select pyjobs.enqueue_job(%s, '[]', seal => false)", QUEUE)
    add_batches(conn, job, batches)
    if sealed:
        conn.execute("select pyjobs.seal_job(%s)", [job])
    return int(job)


def add_batches(conn: Connection[Any], job: int, batches: int) -> None:
    """So many more batches of one item."""
    for start in range(0, batches, CHUNK):
        size = min(CHUNK, batches - start)
        conn.execute(f"select pyjobs.add_items(%s, {ITEMS})".encode(), [job, size])


def small_jobs(conn: Connection[Any], jobs: int, batches: int = 1) -> None:
    """So many jobs, of so many batches of one item each."""
    if batches == 1:
        for start in range(0, jobs, CHUNK):
            size = min(CHUNK, jobs - start)
            conn.execute(f"select pyjobs.enqueue_jobs(%s, {PARAMS})".encode(), [QUEUE, size])
        return
    conn.execute(
        "select count(pyjobs.enqueue_job(%s,"
        " (select jsonb_agg(i) from generate_series(1, %s) i)))"
        " from generate_series(1, %s)",
        [QUEUE, batches, jobs],
    )


def lease_all(conn: Connection[Any], job: int) -> tuple[int, int]:
    """Lease every batch of a job for a day: the least of their ids, and how many.

    Raises AssertionError where the ids are not without gaps; nothing promises that, but in a
    database of one's own they are, and a load that counts them up needs it.
    """
    low, high, count, epochs = conn.execute(
        "select min(batch_id), max(batch_id), count(*), max(lease_epoch)"
        " from pyjobs.claim_next_batch(%s, 'bench', 1000000, '1 day')",
        [job],
    ).fetchone() or (0, 0, 0, 0)
    while True:
        more = conn.execute(
            "select min(batch_id), max(batch_id), count(*), max(lease_epoch)"
            " from pyjobs.claim_next_batch(%s, 'bench', 1000000, '1 day')",
            [job],
        ).fetchone()
        if more is None or not more[2]:
            break
        low, high = min(low, more[0]), max(high, more[1])
        count, epochs = count + more[2], max(epochs, more[3])
    assert high - low + 1 == count, "the ids of the batches have gaps"
    assert epochs == 1, "a batch was leased before"
    return int(low), int(count)


def work_off(conn: Connection[Any], job: int) -> None:
    """Lease and record all batches of a job, many at a time."""
    while True:
        done = one(
            conn,
            "with c as (select array_agg(batch_id) ids, array_agg(lease_epoch) epochs"
            " from pyjobs.claim_next_batch(%s, 'bench', 10000))"
            " select count(r.batch_id) from c, pyjobs.record_batches(c.ids, c.epochs) r"
            " where c.ids is not null",
            job,
        )
        if not done:
            return


def settle(conn: Connection[Any]) -> None:
    """As autovacuum would have left it: statistics known, no dead rows of the preparation."""
    conn.execute("vacuum analyze")
    conn.execute("checkpoint")


def wal(conn: Connection[Any]) -> int:
    """The position of the write-ahead log, in bytes."""
    return int(one(conn, "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def size(conn: Connection[Any]) -> int:
    """The database's size on disk, in bytes."""
    return int(one(conn, "select pg_database_size(current_database())"))
