"""Bytes an item.

One job of batches of one item of so many bytes, which do not compress well, recorded and claimed by
16 sessions. The limit is a guarded one-row update by primary key that also reads a row with the
same bytes in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill, growth
from bench.growth.items import batches, fused, read
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    payload: tuple[int, ...]  # bytes
    total: int  # bytes, at most
    batches: tuple[int, int]  # at least, at most
    sessions: int = 16


SIZES = {
    "smoke": Size((100, 1_000), 1_000_000, (320, 2_000)),
    "short": Size((100, 1_000, 10_000, 100_000), 50_000_000, (960, 16_000)),
    "long": Size((100, 1_000, 10_000, 100_000, 1_000_000), 1_000_000_000, (1_920, 160_000)),
}
ROUNDS = {"short": 1}
AXIS = "bytes an item"
UNITS = {"rate": "batches/s", "bytes": "MB/s", "p99": "ms"}
GOALS: list[Goal] = []
BENDS = """
The same in bytes: from two thousand on an item is kept beside the row. A record does not touch
it: an update takes over what lies there. So large items cost their reading once, in the claim, as
the limit's line shows; where they are pictures, hand in their addresses.
"""

#: So many bytes of hexadecimal digits, another for each n.
TEXT = """(select left(string_agg(md5(n::text || '/' || part::text), ''), %s)
            from generate_series(1, %s / 32 + 1) part)"""
ADD = f"""select pyjobs.add_items(%s, (select jsonb_agg({TEXT}) from generate_series(1, %s) n))"""
FILL = f"""insert into bare.item select n, to_jsonb({TEXT}) from generate_series(1, %s) n"""
#: Bytes that one call hands in.
CHUNK = 10_000_000


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def job(bench: Bench, payload: int) -> Measured:
        number = batches(size.batches, size.total // payload, size.sessions)
        with bench.database() as url:
            with bench.connect(url) as conn:
                job = fill.one(
                    conn, "select pyjobs.enqueue_job(%s, '[]', seal => false)", fill.QUEUE
                )
                step = max(1, CHUNK // payload)
                for start in range(0, number, step):
                    part = min(step, number - start)
                    conn.execute(ADD.encode(), [job, payload, payload, part])
                fill.settle(conn)
            load = fused(bench, url, job, number, size.sessions)
        rate = load.rate
        return Measured({"rate": rate, "bytes": rate * payload / 1e6, "p99": load.p99})

    def update(bench: Bench, payload: int) -> Measured:
        number = batches(size.batches, size.total // payload, size.sessions)
        load = read(bench, FILL, [payload, payload], number, size.sessions)
        rate = load.rate
        return Measured({"rate": rate, "bytes": rate * payload / 1e6, "p99": load.p99})

    return growth.sides(size.payload, {growth.PYJOBS: job, growth.LIMIT: update})
