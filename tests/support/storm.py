"""Many sessions at once that do everything the interface allows, at random, on random jobs.

A seed gives each thread its own random numbers; how the threads meet is up to the machine, so that
every run sees other interleavings. What must hold is checked while it goes on, when it has come to
rest, and again when every job has been worked to its end.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import psycopg

from tests.support.calls import Calls, let_go
from tests.support.rules import FINAL, Watch, broken_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.calls import Row

# Refusals that belong to the game; everything else is trouble.
EXPECTED = {"PJ001", "PJ002", "PJ003", "PJ006"}
QUEUES = ["red", "green"]
LEASE = "40 seconds"


class Storm:
    """``several``: transactions may touch several jobs in any order, and so deadlock."""

    def __init__(self, dsn: str, admin_dsn: str, seed: int, *, several: bool) -> None:
        self.trouble: list[str] = []
        self.done: dict[str, int] = defaultdict(int)
        # (batch, epoch) -> counters, of every record whose commit was acknowledged
        self.acknowledged: dict[tuple[int, int], dict[str, int]] = {}
        # jobs whose end was left to the reaper, as a cancel or a reaper gave up waiting
        self.excused: set[int] = set()
        self._dsn = dsn
        self._admin_dsn = admin_dsn
        self._seed = seed
        self._several = several
        self._stop = threading.Event()
        self._jobs: list[int] = []
        self._unsealed: list[int] = []
        self._held: list[int] = []
        self._threads: list[threading.Thread] = []

    # -- running

    def blow(self, seconds: float, workers: int = 6) -> None:
        """All at once for so long, or until there is trouble; then let all end."""
        with self._connect() as conn:
            calls = Calls(conn)
            calls.settable_clock()
            calls.mark_every_claim()
            calls.do("create table public.result (batch_id bigint, lease_epoch bigint)")
        for n in range(workers):
            self._run(f"worker {n}", _Worker(self, f"w{n}").turn)
        for n in range(2):
            self._run(f"producer {n}", self._produce)
            self._run(f"operator {n}", self._operate)
        self._run("time", self._pass_time)
        self._run("killer", self._kill, self._admin_dsn)
        self._run("observer", _Observer(self).turn)
        self._stop.wait(seconds)
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                self.trouble.append(f"{thread.name} hangs")

    def say(self, text: str) -> None:
        """Something went wrong."""
        self.trouble.append(text)
        self._stop.set()

    def pause(self, seconds: float) -> None:
        """Stay as one is, unless it is over."""
        self._stop.wait(seconds)

    def _connect(self, name: str = "storm", dsn: str | None = None) -> psycopg.Connection[Any]:
        return psycopg.connect(
            dsn or self._dsn, autocommit=True, application_name=name, prepare_threshold=None
        )

    def _run(
        self, name: str, turn: Callable[[Calls, random.Random], None], dsn: str | None = None
    ) -> None:
        rng = random.Random(f"{self._seed} {name}")

        def run() -> None:
            while not self._stop.is_set():
                with contextlib.suppress(psycopg.OperationalError), self._connect(name, dsn) as c:
                    calls = Calls(c)
                    while not self._stop.is_set():
                        self._turn(name, turn, calls, rng)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _turn(
        self,
        name: str,
        turn: Callable[[Calls, random.Random], None],
        calls: Calls,
        rng: random.Random,
    ) -> None:
        try:
            turn(calls, rng)
        except psycopg.errors.DeadlockDetected as error:
            if not self._several:
                self.say(f"{name}: {error}")
        except psycopg.OperationalError as error:
            # Killed: the connection is gone. Anything else of this class is trouble.
            if not calls.conn.closed and error.sqlstate is not None:
                self.say(f"{name}: {error.sqlstate} {error}")
            raise
        except psycopg.Error as error:
            if error.sqlstate not in EXPECTED:
                self.say(f"{name}: {error.sqlstate} {error} {error.diag.context}")
            self.done[f"refused {error.sqlstate}"] += 1
        except Exception as error:  # noqa: BLE001  (told to the test)
            self.say(f"{name}: {type(error).__name__}: {error}")
        if not calls.conn.closed:
            with contextlib.suppress(psycopg.OperationalError):
                if calls.conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    calls.do("rollback")

    # -- producers

    def _produce(self, calls: Calls, rng: random.Random) -> None:
        kind = rng.random()
        self._stop.wait(rng.uniform(0, 0.01))
        waiting = (
            "select count(distinct b.job_id) from pyjobs_internal.batch b "
            "join pyjobs_internal.job j on j.id = b.job_id and j.run = b.run "
            "where b.state = 'pending' and j.status in ('PENDING', 'RETRY') and not j.paused"
        )
        if kind < 0.7 and calls.value(waiting) < 10:
            self._jobs.append(self._enqueue(calls, rng))
            self.done["enqueued"] += 1
        elif kind < 0.75 and self._unsealed:
            job = rng.choice(self._unsealed)
            calls.do(
                "select pyjobs.add_items(%s, (select jsonb_agg(n) from generate_series(1, %s) n), "
                "(select key from pyjobs_internal.stage where job_id = %s and run = 1 "
                "order by random() limit 1))",
                job,
                rng.randint(1, 5),
                job,
            )
        elif kind < 0.85 and self._unsealed:
            job = rng.choice(self._unsealed)
            self._maybe(calls, rng, "select pyjobs.seal_job(%s)", job)
            if rng.random() < 0.5:
                with contextlib.suppress(ValueError):
                    self._unsealed.remove(job)
        elif self._held:
            job = rng.choice(self._held)
            self._maybe(calls, rng, "select pyjobs.release_job(%s)", job)
            if rng.random() < 0.5:
                with contextlib.suppress(ValueError):
                    self._held.remove(job)
        self.done["produced"] += 1

    def _enqueue(self, calls: Calls, rng: random.Random) -> int:
        stages = ["one", "two", "three"][: rng.choice([1, 1, 1, 2, 2, 3])]
        seal, hold = rng.random() < 0.75, rng.random() < 0.15
        items = rng.choice([None, 0, 1, 2, 2, 3, 3, 4, 6])
        job = calls.enqueue(
            rng.choice(QUEUES),
            [] if items == 0 else items,
            batch_size=rng.choice([1, 1, 1, 2]),
            priority=rng.choice([0, 0, 0, 1]),
            failure_threshold=rng.choice([0, 0.3, 0.5, 1]),
            max_attempts=rng.choice([1, 2, 3]),
            stages=stages,
            barriers=[stage for stage in stages[1:] if rng.random() < 0.5],
            hold=hold,
            seal=seal,
            dedupe_key=rng.choice([None, None, f"key {rng.randint(1, 5)}"]),
        )
        if not seal:
            self._unsealed.append(job)
        if hold:
            self._held.append(job)
        return job

    def _maybe(self, calls: Calls, rng: random.Random, query: str, *arguments: Any) -> Any:
        """Commit at once; or a little later; or roll back."""
        how = rng.random()
        if how < 0.6:
            return calls.value(query, *arguments)
        calls.do("begin")
        answer = calls.value(query, *arguments)
        self.pause(rng.uniform(0, 0.03))
        calls.do("commit" if how < 0.85 else "rollback")
        return answer if how < 0.85 else None

    # -- operators

    def _operate(self, calls: Calls, rng: random.Random) -> None:
        self._stop.wait(rng.uniform(0, 0.1))
        if not self._jobs:
            return
        job = rng.choice(self._jobs[-12:])
        kind = rng.choices(
            ["cancel", "finalize", "force", "aside", "pause", "priority", "retry", "reap", "queue"],
            [10, 10, 2, 6, 6, 5, 12, 14, 2],
        )[0]
        if kind == "cancel":
            grace = rng.choice(["0", "10 seconds", "1 minute"])
            begun = time.monotonic()
            # Marked before it commits: who gives up waiting leaves the end to the reaper.
            answer = calls.value("select pyjobs.cancel_job(%s, 'storm', %s)", job, grace)
            if answer == "CANCELING" and (grace == "0" or time.monotonic() - begun > 0.35):
                self.excused.add(job)
        elif kind == "finalize":
            self._maybe(calls, rng, "select pyjobs.finalize_job(%s)", job)
        elif kind == "force":
            end = rng.choice(sorted(FINAL))
            self._maybe(calls, rng, "select pyjobs.finalize_job(%s, %s)", job, end)
        elif kind == "aside":
            if calls.status(job) == "UNKNOWN":
                to = rng.choice(["RETRY", "RETRY", "FAILURE"])
                self._maybe(calls, rng, "select pyjobs.resolve_job(%s, %s, 'storm')", job, to)
            else:
                self._maybe(calls, rng, "select pyjobs.quarantine_job(%s, 'storm')", job)
        elif kind == "pause":
            call = rng.choice(["pause", "resume", "resume"])
            self._maybe(calls, rng, f"select pyjobs.{call}_job(%s)", job)
        elif kind == "queue":
            for call in ("pause", "resume"):
                calls.do(f"select pyjobs.{call}_queue(%s)", rng.choice(QUEUES))
        elif kind == "priority":
            self._maybe(calls, rng, "select pyjobs.set_priority(%s, %s)", job, rng.randint(0, 2))
        elif kind == "retry":
            self._maybe(calls, rng, "select pyjobs.retry_job(%s, %s)", job, rng.random() < 0.5)
        else:
            dry = rng.random() < 0.2
            for row in calls.rows(
                "select * from pyjobs.reap(%s, %s)", rng.choice([None, "1 minute"]), dry
            ):
                if row["action"] == "postponed":
                    self.excused.add(row["job_id"])
        self.done[kind] += 1

    # -- the world

    def _pass_time(self, calls: Calls, rng: random.Random) -> None:
        calls.pass_time(f"{rng.randint(1, 6)} seconds")
        self._stop.wait(0.2)

    def _kill(self, calls: Calls, rng: random.Random) -> None:
        self._stop.wait(rng.uniform(0.1, 0.5))
        killed = calls.rows(
            "select pg_terminate_backend(pid) as it from pg_stat_activity "
            "where datname = current_database() and application_name = %s",
            f"worker {rng.randint(0, 5)}",
        )
        self.done["killed"] += len(killed)

    # -- afterwards

    def at_rest(self) -> list[str]:
        """What does not hold, now that nothing is in flight."""
        with self._connect() as conn:
            wrong = [
                text
                for text in broken_rules(conn)
                if not (
                    "nothing is leased, and nobody has ended it" in text
                    and int(text.split()[1]) in self.excused
                )
            ]
            calls = Calls(conn)
            recorded = {
                (row["id"], row["lease_epoch"]): row["counters"] or {}
                for row in calls.rows("select * from pyjobs.batch where state = 'recorded'")
            }
            rows = [
                (row["batch_id"], row["lease_epoch"])
                for row in calls.rows("select * from public.result")
            ]
        if len(rows) != len(set(rows)) or set(rows) != set(recorded):
            wrong.append(
                f"results are not there exactly once: {len(rows)} rows, {len(recorded)} recorded; "
                f"{set(rows) ^ set(recorded)}"
            )
        for lease, counters in list(self.acknowledged.items()):
            if recorded.get(lease) != counters:
                wrong.append(f"{lease} was acknowledged, and is not recorded as such")
        return wrong

    def work_to_the_end(self) -> list[str]:
        """Bring every job to its end by claims, records and reap; what could not be brought."""
        with self._connect() as conn:
            calls = Calls(conn)
            let_go(calls, QUEUES)
            idle = 0
            while idle < 3:
                batches = calls.rows("select * from pyjobs.claim_next_job('calm', %s, 20)", QUEUES)
                for batch in batches:
                    _insert(calls, batch)
                    calls.record(batch)
                if not batches:
                    calls.pass_time("10 minutes")
                    calls.rows("select * from pyjobs.reap()")
                    idle += 1
                else:
                    idle = 0
            return [
                f"job {row['id']} is {row['status']}: {calls.findings(row['id'])}"
                for row in calls.rows("select id, status from pyjobs.job order by id")
                if row["status"] not in FINAL
            ]


def _insert(calls: Calls, batch: Row) -> None:
    calls.do("insert into public.result values (%s, %s)", batch["batch_id"], batch["lease_epoch"])


class _Worker:
    """Holds leases, and does with them what workers do."""

    def __init__(self, storm: Storm, name: str) -> None:
        self._storm = storm
        self._name = name
        self._leases: list[Row] = []
        # lost or recorded by a transaction that committed: to be sent late, or again
        self._old: list[Row] = []
        self._sent: list[Row] = []

    def turn(self, calls: Calls, rng: random.Random) -> None:
        """One transaction of some steps."""
        self._storm.done["turns"] += 1
        kept = list(self._leases)
        self._sent = []
        records: dict[tuple[int, int], dict[str, int]] = {}
        self._forget(rng)
        if rng.random() < 0.08 and self._old:
            self._late(calls, rng)
            return
        try:
            own = rng.random() < 0.75  # a transaction of our own
            if own:
                calls.do("begin")
            job = None
            for _ in range(rng.randint(1, 5) if own else 1):
                job = self._step(calls, rng, job, records, in_transaction=own)
                if own and rng.random() < 0.2:  # so that transactions overlap
                    self._storm.pause(rng.uniform(0, 0.02))
            if own and rng.random() < 0.2:
                calls.do("rollback")
                self._leases = kept
                return
            if own:
                calls.do("commit")
        except psycopg.OperationalError:
            self._leases = kept  # whatever became of it
            raise
        except psycopg.Error as error:
            self._leases = kept
            if error.sqlstate in ("PJ001", "PJ002"):
                self._leases = [x for x in kept if rng.random() < 0.5]
            raise
        self._old += self._sent
        self._storm.acknowledged.update(records)
        self._storm.done["recorded"] += len(records)

    def _go_back(self, before: Any, records: dict[Any, Any]) -> None:
        """What was claimed or recorded since then never was."""
        self._leases, kept, self._sent = before
        records.clear()
        records.update(kept)

    def _forget(self, rng: random.Random) -> None:
        """Some leases are lost, as if by a crash; some come back later."""
        if len(self._leases) > 6 or (self._leases and rng.random() < 0.05):
            self._old.append(self._leases.pop(rng.randrange(len(self._leases))))
        del self._old[:-10]

    def _late(self, calls: Calls, rng: random.Random) -> None:
        """A late result, or one that is sent again, in a transaction of its own."""
        batch = self._old.pop(rng.randrange(len(self._old)))
        calls.do("begin")
        _insert(calls, batch)
        calls.record(batch)
        calls.do("commit")
        self._storm.acknowledged[batch["batch_id"], batch["lease_epoch"]] = {}

    def _step(
        self,
        calls: Calls,
        rng: random.Random,
        job: int | None,
        records: dict[tuple[int, int], dict[str, int]],
        *,
        in_transaction: bool,
    ) -> int | None:
        """One call, perhaps in a savepoint; the job that it was about."""
        if not in_transaction or not rng.random() < 0.25:
            return self._call(calls, rng, job, records, in_transaction=in_transaction)
        before = list(self._leases), dict(records), list(self._sent)
        calls.do("savepoint s")
        try:
            job = self._call(calls, rng, job, records, in_transaction=True)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            if error.sqlstate not in EXPECTED:
                raise
            calls.do("rollback to savepoint s")
            self._go_back(before, records)
            return job
        if rng.random() < 0.5:
            calls.do("rollback to savepoint s")
            self._go_back(before, records)
        elif rng.random() < 0.5:
            calls.do("release savepoint s")
        return job

    def _call(
        self,
        calls: Calls,
        rng: random.Random,
        job: int | None,
        records: dict[tuple[int, int], dict[str, int]],
        *,
        in_transaction: bool,
    ) -> int | None:
        several = self._storm._several
        mine = [x for x in self._leases if several or job in (None, x["job_id"])]
        if not mine or rng.random() < 0.3:
            return self._claim(calls, rng, job, several=several)
        batch = rng.choice(mine)
        kind = rng.choices(["record", "release", "extend", "fused", "many"], [12, 3, 2, 3, 2])[0]
        lease = (batch["batch_id"], batch["lease_epoch"])
        if kind == "extend":
            calls.do("select pyjobs.extend_lease(%s, %s, %s)", *lease, LEASE)
            return batch["job_id"]
        self._leases.remove(batch)
        if kind == "release":
            calls.do(
                "select pyjobs.release_batch(%s, %s, %s, %s)",
                *lease,
                rng.choice([None, "storm"]),
                rng.choice(["0", "0", "5 seconds"]),
            )
            return batch["job_id"]
        if rng.random() < 0.1:
            self._sent.append(batch)
        if kind == "many" and not in_transaction:
            self._many(calls, rng, batch, records)
            return batch["job_id"]
        if not in_transaction:
            calls.do("begin")
        _insert(calls, batch)
        failed = [n for n in range(len(batch["items"])) if rng.random() < 0.2]
        counters = {"found": rng.randint(1, 9)} if rng.random() < 0.6 else {}
        emits = list(range(rng.randint(1, 3))) if rng.random() < 0.4 else None
        last = calls.value(
            "select max(no) = (select no from pyjobs_internal.stage t where t.job_id = s.job_id "
            "and t.run = s.run and t.key = %s) from pyjobs_internal.stage s "
            "where job_id = %s and run = %s group by job_id, run",
            batch["stage"],
            batch["job_id"],
            batch["run"],
        )
        emits = None if last else emits
        if kind == "fused":
            rows = calls.rows(
                "select * from pyjobs.record_and_claim(%s, %s, %s, %s, %s, %s, 2, %s)",
                *lease,
                self._name,
                json.dumps([{"index": n, "error": "storm"} for n in failed]),
                json.dumps(counters),
                None if emits is None else json.dumps(emits),
                LEASE,
            )
            self._leases += [row for row in rows if row["batch_id"] is not None]
        else:
            calls.record(batch, failed, counters, emits)
        records[lease] = counters
        if not in_transaction:
            calls.do("commit")
        return batch["job_id"]

    def _many(
        self,
        calls: Calls,
        rng: random.Random,
        batch: Row,
        records: dict[tuple[int, int], dict[str, int]],
    ) -> None:
        """A stale one is told and not raised, so the rows follow what was recorded."""
        several = self._storm._several
        more = [x for x in self._leases if several or x["job_id"] == batch["job_id"]]
        chosen = [batch, *rng.sample(more, min(len(more), 2))]
        calls.do("begin")
        outcomes = calls.rows(
            "select * from pyjobs.record_batches(%s::bigint[], %s::bigint[])",
            [x["batch_id"] for x in chosen],
            [x["lease_epoch"] for x in chosen],
        )
        done = {row["batch_id"] for row in outcomes if row["outcome"] == "recorded"}
        for x in chosen:
            if x["batch_id"] in done:
                _insert(calls, x)
                records[x["batch_id"], x["lease_epoch"]] = {}
            if x in self._leases:
                self._leases.remove(x)
        calls.do("commit")

    def _claim(
        self, calls: Calls, rng: random.Random, job: int | None, *, several: bool
    ) -> int | None:
        jobs = self._storm._jobs
        if job is None and jobs and rng.random() < 0.3:
            job = rng.choice(jobs[-12:])
        if job is None and several and rng.random() < 0.3:
            rows = calls.rows(
                "select * from pyjobs.claim_jobs(%s, %s, 2, %s)", self._name, QUEUES, LEASE
            )
        elif job is None:
            rows = calls.rows(
                "select * from pyjobs.claim_next_job(%s, %s, %s, %s)",
                self._name,
                QUEUES,
                rng.randint(1, 3),
                LEASE,
            )
        else:
            rows = calls.claim(job, rng.randint(1, 3), worker=self._name, lease=LEASE)
        self._leases += rows
        self._storm.done["claimed"] += len(rows)
        return rows[0]["job_id"] if rows else job


class _Observer:
    """Looks while all goes on: nothing may disagree, and nothing goes backwards."""

    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._watch = Watch()

    def turn(self, calls: Calls, rng: random.Random) -> None:
        for row in calls.rows("select * from pyjobs.audit_job()"):
            self._storm.say(f"audit_job while it went on: {row}")
        for row in calls.rows(
            "select id, run, status, finished_at, pyjobs.job_progress(id) as document "
            "from pyjobs.job"
        ):
            for text in self._watch.look(row):
                self._storm.say(f"job {row['id']}: {text}")
        jobs = self._storm._jobs
        if jobs:
            calls.findings(rng.choice(jobs))
        self._storm.done["observed"] += 1
