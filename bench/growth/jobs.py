"""Jobs waiting.

So many plain jobs wait in a queue; 8 sessions each claim one, record it and enqueue another, a
commit each, so that the number stays. The limit is the least that does it: twenty lines of PL/pgSQL
with SKIP LOCKED that delete what is done, and keep neither history, counts nor turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import fill, growth
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    jobs: tuple[int, ...]
    seconds: int
    sessions: int = 8


SIZES = {
    "smoke": Size((10, 100), 1),
    "short": Size((10, 100, 1_000, 10_000, 100_000), 4),
    "long": Size((10, 100, 1_000, 10_000, 100_000, 1_000_000), 20),
}
ROUNDS = {"short": 1}
AXIS = "jobs waiting"
UNITS = {"rate": "jobs/s", "p99": "ms"}
GOALS: list[Goal] = []
BENDS = """
Level: whose turn it is stands in an index. Where as few jobs wait as there are sessions, they
meet at the same few: a claim passes over what others hold. A plain job costs a commit each for
the claim, the record and the enqueueing, and writes a job, a stage, a batch and an offer, where
the bare queue writes one row: `enqueue_jobs`, `claim_jobs` and `record_batches` do a hundred of
these in one.
"""

PYJOBS = r"""
select batch_id, lease_epoch from pyjobs.claim_next_job('w' || :client_id, '{bench}') \gset
select job_id from pyjobs.record_batch(:batch_id, :lease_epoch);
select pyjobs.enqueue_job('bench', params => '{"image": "survey/2026/plate-000000001.png"}');
"""
BARE = r"""
select id from bare.claim(1) \gset
select bare.done(array[:id]::bigint[]);
select bare.enqueue('{"image": "survey/2026/plate-000000001.png"}');
"""


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def jobs(bench: Bench, waiting: int) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                # Those in the sessions' hands do not wait.
                fill.small_jobs(conn, waiting + size.sessions)
                fill.settle(conn)
            load = bench.load(url, PYJOBS, sessions=size.sessions, seconds=size.seconds)
        return Measured({"rate": load.rate, "p99": load.p99})

    def bare(bench: Bench, waiting: int) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                conn.execute(
                    "insert into bare.queue (payload) select jsonb_build_object('image', n)"
                    " from generate_series(1, %s) n",
                    [waiting + size.sessions],
                )
                fill.settle(conn)
            load = bench.load(url, BARE, sessions=size.sessions, seconds=size.seconds)
        return Measured({"rate": load.rate, "p99": load.p99})

    return growth.sides(size.jobs, {growth.PYJOBS: jobs, growth.LIMIT: bare})
