"""What sessions wait for under full load.

16 sessions record, or record and claim, on one big job; meanwhile every 20 ms somebody notes in
pg_stat_activity what each of them does. Shares are of the samples of sessions that are inside a
call: those that wait for pgbench's next command are left out. Recorders must not wait for each
other's locks: `row locks` counts waits for a row, for a transaction, or for an advisory lock. Where
sessions claim as well a few are seen: a claim that finds a batch just taken, between its snapshot
and its lock, locks that batch's new version before it sees that it is no longer waiting (so
PostgreSQL's SKIP LOCKED works), and keeps the lock to its commit, for which the batch's recorder
waits. The lists say which events they were, and, from one more run with pg_stat_statements on,
which statements took the time, the functions' own included.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING

from bench import fill
from bench.server import Bench
from bench.workload import Goal, Measured
from bench.workloads.fused import FUSED
from bench.workloads.record import RECORD, UPDATE

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Size:
    batches: int
    sessions: int = 16


SIZES = {
    "smoke": Size(batches=4_000),
    "short": Size(batches=40_000),
    "long": Size(batches=300_000),
}
ROUNDS = {"short": 1, "long": 2}
UNITS = {
    "rate": "calls/s",
    "running": "share",
    "log": "share",
    "server's latches": "share",
    "row locks": "share",
    "other": "share",
    "samples": "",
}
GOALS = [
    Goal("recorders that wait for a row lock", "row locks", "record", at_most=0.001),
    Goal("the same while they claim, too", "row locks", "record and claim", at_most=0.001),
]

PAUSE = 0.02
SAMPLE = """
select coalesce(wait_event_type || ': ' || wait_event, 'running'), count(*)
from pg_stat_activity
where datname = current_database() and application_name = 'pgbench' and state <> 'idle'
    and wait_event_type is distinct from 'Client'
group by 1
"""
#: Those inside of the functions, too: the call's own time is that of all below it.
STATEMENTS = """
select regexp_replace(query, '\\s+', ' ', 'g'), total_exec_time
from pg_stat_statements
where dbid = (select oid from pg_database where datname = current_database())
    and query !~* '(pg_stat|generate_series|vacuum|checkpoint)'
order by total_exec_time desc limit 12
"""
LOG = {"LWLock: WALWrite", "LWLock: WALInsert", "IO: WalSync", "IO: WalWrite", "IO: WALSync",
       "IO: WALWrite", "IPC: CommitDelay"}  # fmt: skip


def kind(event: str) -> str:
    """Which figure an event counts for."""
    if event == "running":
        return "running"
    if event in LOG:
        return "log"
    family, _, name = event.partition(": ")
    if family == "Lock" and name != "extend":
        return "row locks"
    return "server's latches" if family in {"LWLock", "BufferPin", "Buffer"} else "other"


def sides(size: Size) -> dict[str, Callable[[Bench], Measured]]:
    def job(bench: Bench, url: str, *, leased: bool) -> dict[str, int]:
        with bench.connect(url) as conn:
            number = fill.big_job(conn, size.batches)
            low = fill.lease_all(conn, number)[0] if leased else 0
            fill.settle(conn)
        if leased:
            return {"i": -1, "low": low, "sessions": size.sessions}
        return {"job": number, "batch_id": 0, "lease_epoch": 0}

    def watch(
        bench: Bench, url: str, side: str, script: str, variables: dict[str, int]
    ) -> Measured:
        seen: Counter[str] = Counter()
        # Its last tenth is the tail, where the one who ends the job may wait.
        each = size.batches * 9 // 10 // size.sessions
        with (
            bench.connect(url) as conn,
            bench.start_load(
                url, script, sessions=size.sessions, transactions=each, variables=variables
            ) as load,
        ):
            while load.running:
                seen.update(dict(conn.execute(SAMPLE).fetchall()))
                sleep(PAUSE)
            done = load.finish()
        total = seen.total() or 1
        shares: Counter[str] = Counter()
        for event, count in seen.items():
            shares[kind(event)] += count
        figures = {name: shares[name] / total for name in UNITS if name not in {"rate", "samples"}}
        figures |= {"rate": done.rate, "samples": float(seen.total())}
        events = [(event, count / total) for event, count in seen.most_common()]
        return Measured(figures, lists={f"{side}: waits for | share of samples": events})

    def record(bench: Bench) -> Measured:
        with bench.database() as url:
            return watch(bench, url, "record", RECORD, job(bench, url, leased=True))

    def fused(bench: Bench) -> Measured:
        with bench.database() as url:
            return watch(bench, url, "record and claim", FUSED, job(bench, url, leased=False))

    def update(bench: Bench) -> Measured:
        with bench.database() as url:
            with bench.connect(url) as conn:
                conn.execute("insert into bare.batch select generate_series(1, %s)", [size.batches])
                fill.settle(conn)
            variables = {"i": -1, "low": 1, "sessions": size.sessions}
            return watch(bench, url, "bare update", UPDATE, variables)

    def statements(bench: Bench) -> Measured:
        watched = {
            "shared_preload_libraries": "pg_stat_statements",
            "pg_stat_statements.track": "all",
        }
        # The library is there when a server starts, or not: this one has a server of its own.
        with Bench(bench.folder, {**bench.settings, **watched}) as own, own.database() as url:
            variables = job(own, url, leased=False)
            with own.connect(url) as conn:
                conn.execute("create extension pg_stat_statements")
                load = own.load(
                    url,
                    FUSED,
                    sessions=size.sessions,
                    transactions=size.batches // 2 // size.sessions,
                    variables=variables,
                )
                rows = conn.execute(STATEMENTS.encode()).fetchall()
        taken = [(text, time * 1000 / load.transactions) for text, time in rows]
        lists = {"record and claim: statement | µs for each batch, of elapsed time": taken}
        return Measured({"rate": load.rate}, lists=lists)

    return {
        "record": record,
        "record and claim": fused,
        "bare update": update,
        "record and claim, statements counted": statements,
    }
