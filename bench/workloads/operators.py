"""What operators call, while 16 sessions work on the job.

Jobs of many batches are claimed and recorded by 16 sessions; beside them one more session calls
`job_progress`, `explain_job`, `pause_job` and `resume_job`, and a bare one-row update in turn, and
at the end cancels each of the jobs. The goals hold the medians against that of the bare update,
which waits for the same processors and the same disk.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench import fill
from bench.workload import Goal, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from bench.server import Bench


@dataclass(frozen=True)
class Size:
    batches: int  # of each job
    jobs: int
    calls: int  # of each kind, for each job
    seconds: int  # the longest that the load lasts
    sessions: int = 16


SIZES = {
    "smoke": Size(batches=5_000, jobs=1, calls=3, seconds=30),
    "short": Size(batches=100_000, jobs=2, calls=10, seconds=60),
    "long": Size(batches=1_000_000, jobs=4, calls=30, seconds=900),
}
ROUNDS = {"short": 2, "long": 3}
UNITS = dict.fromkeys(("bare update", "progress", "explain", "pause", "cancel"), "ms") | {
    f"{name} / update": "ratio" for name in ("progress", "explain", "pause", "cancel")
}
GOALS = [
    Goal("cancel / bare update", "cancel / update", "pyjobs", at_most=20),
    Goal("progress / bare update", "progress / update", "pyjobs", at_most=20),
    Goal("explain / bare update", "explain / update", "pyjobs", at_most=50),
    Goal("pause / bare update", "pause / update", "pyjobs", at_most=20),
]

# Claims of a paused or cancelled job find nothing; what is leased is recorded all the same.
LOAD = r"""
select coalesce(max(batch_id), 0) as batch_id, coalesce(max(lease_epoch), 0) as lease_epoch
from pyjobs.claim_next_batch(:job, 'w' || :client_id) \gset
\if :batch_id > 0
select * from pyjobs.record_batch(:batch_id, :lease_epoch);
\endif
"""
CALLS = {
    "bare update": "update bare.counter set done = done + 1 where job_id = 1 returning done, %s",
    "progress": "select pyjobs.job_progress(%s)",
    "explain": "select count(*) from pyjobs.explain_job(%s)",
    "pause": "select pyjobs.pause_job(%s)",
}


def status(conn: Connection[Any], job: int) -> str:
    return str(fill.one(conn, "select status from pyjobs.job where id = %s", job))


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def run(bench: Bench) -> Measured:
        times: dict[str, list[float]] = {name: [] for name in [*CALLS, "cancel"]}
        with bench.database() as url, bench.connect(url) as conn:
            jobs = [fill.big_job(conn, size.batches) for _ in range(size.jobs)]
            fill.settle(conn)

            def timed(name: str, query: str, job: int) -> None:
                began = perf_counter()
                conn.execute(query.encode(), [job]).fetchone()
                times[name].append((perf_counter() - began) * 1000)

            with ExitStack() as loads:
                for job in jobs:
                    loads.enter_context(
                        bench.start_load(
                            url,
                            LOAD,
                            sessions=max(1, size.sessions // size.jobs),
                            seconds=size.seconds,
                            variables={"job": job},
                        )
                    )
                for job in jobs:
                    # The first claim of the job has committed: the load is there.
                    while status(conn, job) == "PENDING":
                        pass
                for _ in range(size.calls):
                    for job in jobs:
                        for name, query in CALLS.items():
                            timed(name, query, job)
                        conn.execute("select pyjobs.resume_job(%s)", [job])
                for job in jobs:
                    assert status(conn, job) == "STARTED", "the load did not last: larger jobs"
                    timed("cancel", "select pyjobs.cancel_job(%s)", job)
        medians = {name: median(values) for name, values in times.items()}
        bare = medians["bare update"]
        return Measured(
            medians
            | {f"{name} / update": medians[name] / bare for name in times if name != "bare update"}
        )

    return {"pyjobs": run}
