"""What the time goes into.

One session calls each step for rows of its own, many in one transaction, so that neither the
protocol nor the commit is in it: the processor time of its server process, for one call. First what
a record is made of: an empty function; the bare guarded update in a function; the same with one
look at another open row, which is the least that can end a job without a counter; then the update
in tables like the ledger with its columns, its checks and its indexes; and the whole call. Then
what a batch in bulk is made of: COPY of the same bytes into a bare table, and into tables like
the ledger. Then calls in a transaction each, from a client, with a commit that waits for no disk:
there the server makes ready anew, in each transaction, what a function calls upon, and each
statement in it costs more than the rows that it touches. It says how far a goal that is missed
could be reached at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import fill
from bench.server import cpu_seconds
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    calls: int
    rows: int  # for COPY


SIZES = {
    "smoke": Size(calls=1_000, rows=2_000),
    "short": Size(calls=20_000, rows=100_000),
    "long": Size(calls=200_000, rows=1_000_000),
}
UNITS = {"time": "us"}
GOALS: list[Goal] = []

SQL = Path(__file__).parent.parent / "sql" / "anatomy.sql"

# As many rows again stay open, so that the look always finds one at once.
BARE = "insert into bare.batch select generate_series(1, %s * 2)"
LOOKED = "insert into bare.looked select generate_series(1, %s * 2)"
LEDGER = """
insert into {} (id, pos, job_id, run, stage, item_count, lease_epoch, attempt, state, worker,
    leased_at, lease_expires_at)
select n, n, 1, 1, 1, 1, 1, 1, 'leased', 'w', clock_timestamp(), clock_timestamp() + '1 day'
from generate_series(1, %s * 2) n
"""
LOOP = """
do $do$
begin
    for n in {first} .. {last} loop
        perform {call};
    end loop;
end
$do$
"""
FILLED = "(id, items, pos, job_id, run, stage, item_count)"
ALONE = {
    "select 1": (BARE, "select %(n)s::bigint"),
    "the bare update": (
        BARE,
        "update bare.batch set state = 'recorded', closed_at = clock_timestamp()"
        " where id = %(n)s and epoch = 1 and state = 'leased'",
    ),
    "the bare update, and a look": (LOOKED, "select bare.record_and_look(%(n)s)"),
    "record_batch": (None, "select * from pyjobs.record_batch(%(n)s, 1)"),
    "claim_next_batch": (None, "select * from pyjobs.claim_next_batch(%(job)s, 'w')"),
    "record_and_claim": (
        None,
        "select batch_id, lease_epoch from pyjobs.record_and_claim(%(batch)s, %(epoch)s, 'w')",
    ),
    "claim_next_job": (None, "select * from pyjobs.claim_next_job('w', '{bench}')"),
}
COPY = {
    "COPY, bare": "copy bare.item (id, item) from stdin",
    "COPY, the ledger's columns": f"copy anatomy.columns {FILLED} from stdin",
    "COPY, and its checks": f"copy anatomy.checks {FILLED} from stdin",
    "COPY, and its indexes": f"copy anatomy.indexes {FILLED} from stdin",
}


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def step(prepare: str | None, call: str) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            with bench.database() as url, bench.connect(url) as conn:
                conn.execute(SQL.read_text(encoding="utf-8").encode())
                if prepare is not None:
                    conn.execute(prepare.encode(), [size.calls])
                fill.settle(conn)
                return loop(conn, call, 1)

        return run

    def loop(conn: Connection[Any], call: str, first: int) -> Measured:
        statement = LOOP.format(first=first, last=first + size.calls - 1, call=call)
        began = cpu_seconds(conn.info.backend_pid)
        conn.execute(statement.encode())
        took = cpu_seconds(conn.info.backend_pid) - began
        return Measured({"time": took / size.calls * 1e6})

    def record(bench: Bench) -> Measured:
        with bench.database() as url, bench.connect(url) as conn:
            job = fill.big_job(conn, 2 * size.calls)
            low, _ = fill.lease_all(conn, job)
            fill.settle(conn)
            return loop(conn, "pyjobs.record_batch(n, 1)", low)

    def copy(statement: str) -> Callable[[Bench], Measured]:
        def run(bench: Bench) -> Measured:
            rest = "\t1\t1\t1\t1\t1" if "items" in statement else ""
            rows = (
                f'{n}\t["survey/2026/plate-{n:09}/image.png"]{rest}\n' for n in range(size.rows)
            )
            text = "".join(rows).encode()
            with bench.database() as url, bench.connect(url) as conn:
                conn.execute(SQL.read_text(encoding="utf-8").encode())
                began = cpu_seconds(conn.info.backend_pid)
                with conn.cursor().copy(statement.encode()) as target:
                    target.write(text)
                took = cpu_seconds(conn.info.backend_pid) - began
                return Measured({"time": took / size.rows * 1e6})

        return run

    def enqueue(bench: Bench) -> Measured:
        with bench.database() as url, bench.connect(url) as conn:
            began = cpu_seconds(conn.info.backend_pid)
            fill.big_job(conn, size.rows)
            took = cpu_seconds(conn.info.backend_pid) - began
            return Measured({"time": took / size.rows * 1e6})

    def alone(prepare: str | None, statement: str) -> Callable[[Bench], Measured]:
        """A statement a transaction: of the nth row, or of the batch that the last one gave."""

        def run(bench: Bench) -> Measured:
            with bench.database() as url, bench.connect(url) as conn:
                low, job = 1, 0
                goes_on = "%(batch)s" in statement
                if prepare is not None:
                    conn.execute(prepare.encode(), [size.calls])
                else:
                    job = fill.big_job(conn, 2 * size.calls)
                    fill.small_jobs(conn, size.calls)
                    if "record_batch" in statement:
                        low, _ = fill.lease_all(conn, job)
                fill.settle(conn)
                conn.execute("set synchronous_commit = off")
                text = statement.encode()
                given = {"n": low, "job": job, "batch": 0, "epoch": 0}
                if goes_on:
                    given["batch"], given["epoch"] = conn.execute(
                        "select batch_id, lease_epoch from pyjobs.claim_next_batch(%s, 'w')", [job]
                    ).fetchone() or (0, 0)
                took = 0.0
                for n in range(-100, size.calls - 100):
                    if n == 0:
                        took = -cpu_seconds(conn.info.backend_pid)
                    answer = conn.execute(text, given, prepare=True)
                    if goes_on:
                        given["batch"], given["epoch"] = answer.fetchone() or (0, 0)
                    given["n"] += 1
                took += cpu_seconds(conn.info.backend_pid)
                return Measured({"time": took / (size.calls - 100) * 1e6})

        return run

    return {
        "an empty function": step(None, "anatomy.nothing(n)"),
        "the bare update": step(BARE, "anatomy.bare_update(n)"),
        "the bare update, and a look": step(LOOKED, "bare.record_and_look(n)"),
        "the ledger's columns": step(LEDGER.format("anatomy.columns"), "anatomy.columns(n)"),
        "and its checks": step(LEDGER.format("anatomy.checks"), "anatomy.checks(n)"),
        "and its indexes": step(LEDGER.format("anatomy.indexes"), "anatomy.indexes(n)"),
        "record_batch": record,
        **{name: copy(statement) for name, statement in COPY.items()},
        "add_items": enqueue,
        **{f"alone: {name}": alone(*what) for name, what in ALONE.items()},
    }
