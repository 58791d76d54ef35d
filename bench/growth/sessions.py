"""Sessions.

So many sessions, each with `record_and_claim` on one big job: a round trip and a commit record a
batch and lease the next. The limit is as many sessions with one guarded one-row update by primary
key in a bare table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill, growth
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED
from bench.workloads.record import UPDATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    sessions: tuple[int, ...]
    batches: int  # enough for the seconds
    seconds: int


SIZES = {
    "smoke": Size((1, 4), 20_000, 1),
    "short": Size((1, 2, 4, 8, 16, 32, 64), 80_000, 3),
    "long": Size((1, 2, 4, 8, 16, 32, 64), 400_000, 20),
}
ROUNDS = {"short": 2}
AXIS = "sessions"
UNITS = {"rate": "batches/s", "p99": "ms"}
GOALS: list[Goal] = []
BENDS = """
One session waits for a flush of the log with each batch, so that more of them share it: both lines
rise until the processors have no time left. The bare update's stays there; the call's falls beyond
16 sessions, by a third at 64 on two cores, since a claim passes over what others have in hand and
over what they have just committed: per call 2 entries of the index with one session, 17 with 16 and
170 with 64 (pg_stat_user_indexes), so that it takes 0.3 ms of processor time with 16 and 0.5 with
64, and the sessions meet on the same pages (BufferContent is a sixth of what 64 wait for, a
fiftieth of what 16 do). Claims that began at places of their own where the head is in others' hands
would not; the batches of a job would then be served in order only roughly. A pooler before the
server keeps the number of sessions where the rate is best. The call takes four to five times the
processor's time of the bare update, for it writes two rows with all their indexes, finds one of
them, and looks whether it was the last; so its line bends earlier. To move the bend takes more
cores, or fewer calls: a hundred batches a call are a fifth of the time.
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def job(bench: Bench, sessions: int) -> Measured:
        def build(url: str) -> None:
            with bench.connect(url) as conn:
                fill.big_job(conn, size.batches)

        with bench.database(bench.template(f"{size.batches} batches waiting", build)) as url:
            with bench.connect(url) as conn:
                job = fill.one(conn, "select min(id) from pyjobs.job")
            load = bench.load(
                url,
                FUSED,
                sessions=sessions,
                seconds=size.seconds,
                variables={"job": job, "batch_id": 0, "lease_epoch": 0},
            )
        return Measured({"rate": load.rate, "p99": load.p99})

    def update(bench: Bench, sessions: int) -> Measured:
        def build(url: str) -> None:
            with bench.connect(url) as conn:
                conn.execute(
                    "insert into bare.batch select generate_series(1, %s)", [size.batches * 4]
                )

        with bench.database(bench.template(f"{size.batches * 4} bare rows", build)) as url:
            load = bench.load(
                url,
                UPDATE,
                sessions=sessions,
                seconds=size.seconds,
                variables={"i": -1, "low": 1, "sessions": sessions},
            )
        return Measured({"rate": load.rate, "p99": load.p99})

    return growth.sides(size.sessions, {growth.PYJOBS: job, growth.LIMIT: update})
