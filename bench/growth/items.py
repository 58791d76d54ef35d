"""Items a batch.

One job of batches of so many items, of some fifty bytes each, recorded and claimed by 16 sessions.
The limit is a guarded one-row update by primary key that also reads a row with the same items in
it, for they have to reach the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill, growth
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.pgbench import Load
    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    items: tuple[int, ...]
    total: int  # of items, at most
    batches: tuple[int, int]  # at least, at most
    sessions: int = 16


SIZES = {
    "smoke": Size((1, 10), 10_000, (320, 2_000)),
    "short": Size((1, 10, 100, 1_000), 1_000_000, (960, 16_000)),
    "long": Size((1, 10, 100, 1_000, 10_000), 20_000_000, (1_920, 160_000)),
}
ROUNDS = {"short": 1}
AXIS = "items a batch"
UNITS = {"rate": "batches/s", "items": "items/s", "p99": "ms"}
GOALS: list[Goal] = []
BENDS = """
Level while a batch's items are short. From two thousand bytes on, about forty items, they are
compressed and kept beside the row (TOAST), and are unpacked and sent with each claim: both lines
bend where that costs more than the commit. In items a second larger batches still gain.
"""

#: A batch's items: so many, as a list of them in SQL.
ITEMS = fill.ITEMS
FILL = f"""insert into bare.item select b, {ITEMS} from generate_series(1, %s) b"""
READ = r"""
\set i :i + 1
\set id :low + :i * :sessions + :client_id
with closed as (
    update bare.batch set state = 'recorded', closed_at = clock_timestamp()
    where id = :id and epoch = 1 and state = 'leased'
    returning id)
select i.item from closed join bare.item i using (id);
"""


def batches(bounds: tuple[int, int], wanted: int, sessions: int) -> int:
    """As many as are wanted, within the bounds, and the same number for each session."""
    least, most = bounds
    return min(most, max(least, wanted)) // sessions * sessions


def fused(bench: Bench, url: str, job: int, number: int, sessions: int) -> Load:
    """Record and claim so many batches of the job."""
    return bench.load(
        url,
        FUSED,
        sessions=sessions,
        transactions=number // sessions,
        variables={"job": job, "batch_id": 0, "lease_epoch": 0},
    )


def read(bench: Bench, statement: str, sizes: list[int], number: int, sessions: int) -> Load:
    """Update so many bare rows, and read what the statement has filled in beside each.

    sizes: the statement's parameters before the number of rows.
    """
    with bench.database() as url:
        with bench.connect(url) as conn:
            conn.execute("insert into bare.batch select generate_series(1, %s)", [number])
            conn.execute(statement.encode(), [*sizes, number])
            fill.settle(conn)
        return bench.load(
            url,
            READ,
            sessions=sessions,
            transactions=number // sessions,
            variables={"i": -1, "low": 1, "sessions": sessions},
        )


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def job(bench: Bench, items: int) -> Measured:
        number = batches(size.batches, size.total // items, size.sessions)
        with bench.database() as url:
            with bench.connect(url) as conn:
                job = fill.one(
                    conn,
                    "select pyjobs.enqueue_job(%s, '[]', seal => false, batch_size => %s)",
                    fill.QUEUE,
                    items,
                )
                left = number * items
                while left:
                    part = min(left, max(items, fill.CHUNK // items * items))
                    conn.execute(f"select pyjobs.add_items(%s, {ITEMS})".encode(), [job, part])
                    left -= part
                fill.settle(conn)
            load = fused(bench, url, job, number, size.sessions)
        return Measured({"rate": load.rate, "items": load.rate * items, "p99": load.p99})

    def update(bench: Bench, items: int) -> Measured:
        number = batches(size.batches, size.total // items, size.sessions)
        load = read(bench, FILL, [items], number, size.sessions)
        return Measured({"rate": load.rate, "items": load.rate * items, "p99": load.p99})

    return growth.sides(size.items, {growth.PYJOBS: job, growth.LIMIT: update})
