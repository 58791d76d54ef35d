"""Starts the clients of a storm, kills them, their sessions and the server; then lets it calm."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import random
import re
import signal
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from pyjobs import embedded, migrate
from tests.storm import actors, verdict
from tests.support.calls import Calls, let_go
from tests.support.pooler import Pooler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# As a user would run it: what is acknowledged is on the disk. The log tells who had an error.
SETTINGS: Mapping[str, str] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "150",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "autovacuum_naptime": "5s",
    "log_line_prefix": "%e|%p|%a|",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_lock_waits": "off",
}

CLIENTS: Mapping[str, int] = {
    "producer": 3,
    "worker": 4,
    "crossing": 2,
    "package": 2,
    "async-package": 1,
    "operator": 2,
    "observer": 1,
}

# How many of each in a minute.
RATES: Mapping[str, float] = {
    "client": 12,
    "session": 12,
    "heartbeat": 1,
    "drain": 1,
    "backend": 0.3,
    "server": 0.8,
}
# Those that need a server of the storm's own.
OF_THE_SERVER = ("backend", "server")

# What the server may say in a storm; F0001 when it is started and finds that not all processes of
# the one that was killed are gone. All else is a finding.
_OF_THE_GAME = re.compile(r"PJ00[1236]|57P0[123]|08...|40P01|53300|F0001")
# How long anybody may wait for a lock, in seconds.
LONGEST_WAIT = 60.0


@dataclasses.dataclass
class Options:
    """``url``: a new database, as its superuser; None: on a server of the storm's own.

    ``pooler_url``: what the clients use instead, to the same database.
    """

    minutes: float = 60.0
    seed: int = 0
    url: str | None = None
    pooler_url: str | None = None
    # a PgBouncer of the storm's own before its server
    pooler: bool = False
    folder: Path = Path("storm")
    # functions deployed over the good ones, and roles of clients put for others
    broken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    clients: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(CLIENTS))
    settle: float = 300.0
    say: Callable[[str], None] = print


class Slot:
    """The place of one client: who has it now, and who had it before."""

    def __init__(self, storm: Storm, role: str, number: int) -> None:
        self._storm = storm
        self.role = role
        self._number = number
        self._life = 0
        self.draining_until: float | None = None

    def fill(self) -> None:
        """Start a process, the next in this place."""
        self._life += 1
        self.draining_until = None
        options = self._storm.options
        name = f"{self.role}-{self._number}-{self._life}"
        post = actors.Post(
            role=options.roles.get(self.role, self.role),
            name=name,
            seed=f"{options.seed} {name}",
            url=self._storm.client_url,
            ledger=str(self._storm.ledger),
            crossing="crossing" in self._storm.clients,
        )
        self.process = self._storm.spawner.Process(
            target=actors.live, args=(post,), name=name, daemon=True
        )
        self.process.start()
        self.begun = time.monotonic()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Storm:
    """``server``: one of the storm's own, to be killed; None where ``admin_url`` is another's."""

    def __init__(
        self,
        options: Options,
        admin_url: str,
        client_url: str,
        server: embedded.EmbeddedServer | None,
    ) -> None:
        self.options = options
        self.client_url = client_url
        self.ledger = options.folder / "ledger"
        self.spawner: Any = multiprocessing.get_context("forkserver")
        self.verdict = verdict.Verdict()
        self._admin_url = admin_url
        self._server = server
        self._random = random.Random(options.seed)
        self._done: Counter[str] = Counter()
        self._away: list[float] = []
        self._deadlocks = [0, 0]  # before the last crash, and since
        self._longest_wait = 0.0
        # Who crosses may deadlock, and only the server's log can tell theirs from others.
        self.clients = dict(options.clients)
        if server is None:
            self.clients.pop("crossing", None)
        self._slots: list[Slot] = []
        self._admin_conn: psycopg.Connection[Any] | None = None

    # -- the whole of it

    def run(self) -> verdict.Verdict:
        self.ledger.mkdir(parents=True)
        self._prepare()
        self.spawner.set_forkserver_preload(["tests.storm.broken"])
        begun = time.monotonic()
        for role, number in self.clients.items():
            self._slots += [Slot(self, role, n) for n in range(number)]
        for slot in self._slots:
            slot.fill()
        try:
            self._blow()
            self.verdict.counts["seconds of storm"] = round(time.monotonic() - begun)
            self.options.say("the storm is over; waiting for what is in flight")
            self._stop("producer", "operator", "observer")
            self._settle("at rest")
            with self._connect() as conn:
                verdict.explained(conn, self.verdict)
                let_go(Calls(conn), actors.QUEUES)
            self._settle("let go and worked to the end")
            self._stop("worker", "crossing", "package", "async-package")
        finally:
            for slot in self._slots:
                if slot.process.is_alive():
                    slot.kill()
        self.options.say("judging")
        judging = time.monotonic()
        self.verdict.counts.update(
            {f"{kind} kills" if kind != "session" else "sessions ended": self._done[kind]
             for kind in ("client", "heartbeat", "session", "backend", "server")}
        )  # fmt: skip
        self.verdict.counts.update(
            {name: n for name, n in sorted(self._done.items()) if name not in RATES}
        )
        if self._away:
            self.verdict.counts["milliseconds without service, median"] = round(
                1000 * statistics.median(self._away)
            )
            self.verdict.counts["milliseconds without service, most"] = round(
                1000 * max(self._away)
            )
        self.verdict.counts["milliseconds that a lock was waited for, most seen"] = round(
            1000 * self._longest_wait
        )
        with self._connect() as conn:
            self._look()
            verdict.judge(conn, self.ledger, self.verdict)
        self._judge_server()
        self.options.say(f"judged within {time.monotonic() - judging:.0f} s")
        return self.verdict

    def _prepare(self) -> None:
        migrate.migrate(self._admin_url)
        with self._connect() as conn:
            conn.execute(verdict.APPLICATION.encode())
            for text in self.options.broken.values():
                conn.execute(text.encode())
            # What an ended session keeps open must not hold up the others for long.
            conn.execute("select pg_stat_reset()")

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            self._admin_url, autocommit=True, application_name="control", connect_timeout=10
        )

    def _admin(self) -> psycopg.Connection[Any]:
        if self._admin_conn is None or self._admin_conn.closed:
            self._admin_conn = self._connect()
        return self._admin_conn

    # -- what goes wrong

    def _blow(self) -> None:
        seconds = 60 * self.options.minutes
        begun = time.monotonic()
        events = self._plan(seconds)
        last = begun
        while events or time.monotonic() < begun + seconds:
            now = time.monotonic()
            if now - last > 1:
                last = now
                self._look()
                self._mind()
            if events and now >= begun + events[0][0]:
                _, kind = events.pop(0)
                getattr(self, f"do_{kind}")()
            else:
                time.sleep(0.05)

    def _plan(self, seconds: float) -> list[tuple[float, str]]:
        """What happens when, each kind as often as its rate says and at random times."""
        events = []
        for kind, rate in RATES.items():
            if kind in OF_THE_SERVER and self._server is None:
                continue
            times = max(1, round(rate * seconds / 60))
            events += [(self._random.uniform(0.03, 0.97) * seconds, kind) for _ in range(times)]
        return sorted(events)

    def do_client(self) -> None:
        slot = self._random.choice(self._slots)
        slot.kill()
        self._done["client"] += 1
        self._done[f"kill -9 of a client: {slot.role}"] += 1
        slot.fill()

    def do_drain(self) -> None:
        """Ask one to end, as a deployment does."""
        # One that only starts has no handler for the signal yet, and may simply end by it.
        old = time.monotonic() - 10
        slots = [s for s in self._package_workers() if s.draining_until is None and s.begun < old]
        if slots:
            slot = self._random.choice(slots)
            slot.process.terminate()
            slot.draining_until = time.monotonic() + 90
            self._done["workers asked to end (SIGTERM)"] += 1

    def do_heartbeat(self) -> None:
        """The process that keeps a worker's leases alive: its worker starts another."""
        slots = self._package_workers()
        for slot in self._random.sample(slots, min(1, len(slots))):
            for pid in embedded._children(slot.process.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    self._done["heartbeat"] += 1

    def _package_workers(self) -> list[Slot]:
        return [s for s in self._slots if s.role.endswith("package") and s.process.is_alive()]

    def do_session(self) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            pids = [row[0] for row in self._sessions()]
            if pids:
                pid = self._random.choice(pids)
                self._admin().execute("select pg_terminate_backend(%s)", [pid])
                self._done["session"] += 1

    def _sessions(self) -> list[Any]:
        return (
            self._admin()
            .execute(
                "select pid from pg_stat_activity where datname = current_database() "
                "and backend_type = 'client backend' and pid <> pg_backend_pid()"
            )
            .fetchall()
        )

    def do_backend(self) -> None:
        """One process of the server: it ends all the others, and recovers by itself."""
        assert self._server is not None
        self._look()
        try:
            pids = [row[0] for row in self._sessions()]
            os.kill(self._random.choice(pids), signal.SIGKILL)
        except (psycopg.OperationalError, OSError, IndexError):
            return
        self._done["backend"] += 1
        begun = time.monotonic()
        # It takes a moment until the server's first process has noticed and ended the others.
        while time.monotonic() < begun + 30 and self._answers():
            time.sleep(0.01)
        self._wait_for_server(begun)

    def do_server(self) -> None:
        assert self._server is not None
        self._look()
        begun = time.monotonic()
        self._server.kill()
        self._done["server"] += 1
        time.sleep(self._random.choice([0, 0, 0, 1, 2]))
        self._server.restart()
        self._wait_for_server(begun)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            self._admin().execute("select 1 from pyjobs.job limit 1")
            return True
        return False

    def _wait_for_server(self, begun: float) -> None:
        deadline = time.monotonic() + 120
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not come back")
            time.sleep(0.02)
        self._away.append(time.monotonic() - begun)
        self._deadlocks = [sum(self._deadlocks), 0]

    # -- looking on

    def _look(self) -> None:
        """At what the server counts, which a crash of it would reset, and at who waits."""
        with contextlib.suppress(psycopg.OperationalError):
            row = (
                self._admin()
                .execute(
                    "select d.deadlocks, (select coalesce(max(extract(epoch from clock_timestamp() "
                    "- l.waitstart)), 0)::float from pg_locks l where not l.granted) "
                    "from pg_stat_database d where d.datname = current_database()"
                )
                .fetchall()[0]
            )
            self._deadlocks[1] = max(self._deadlocks[1], row[0])
            self._longest_wait = max(self._longest_wait, row[1])

    def _mind(self) -> None:
        """Nobody ends by himself; who was asked to does so in time."""
        for slot in self._slots:
            if slot.process.is_alive():
                if slot.draining_until is not None and time.monotonic() > slot.draining_until:
                    self.verdict.wrong.append(f"{slot.process.name} did not end when asked to")
                    slot.kill()
                    slot.fill()
                continue
            if slot.draining_until is None or slot.process.exitcode != 0:
                how = "by itself" if slot.draining_until is None else "when asked to"
                self.verdict.wrong.append(
                    f"{slot.process.name} ended {how}, with {slot.process.exitcode}"
                )
            slot.fill()

    def _stop(self, *roles: str) -> None:
        slots = [slot for slot in self._slots if slot.role in roles]
        for slot in slots:
            slot.process.terminate()
        now = time.monotonic()
        for slot in slots:
            slot.process.join(max(0, now + 90 - time.monotonic()))
            # One that only starts has no handler for the signal yet, and may simply end by it.
            starts = slot.begun > now - 30
            if slot.process.exitcode not in ({0, -signal.SIGTERM} if starts else {0}):
                self.verdict.wrong.append(
                    f"{slot.process.name} was asked to end: {slot.process.exitcode}"
                )
                slot.kill()
            self._slots.remove(slot)

    def _settle(self, what: str) -> None:
        """Wait until there is nothing that a worker could do; time passes, and leases run out."""
        deadline = time.monotonic() + self.options.settle
        quiet = 0
        with self._connect() as conn:
            while quiet < 4:
                self._mind()
                conn.execute("select * from pyjobs.reap()")
                left = conn.execute(_IN_FLIGHT.encode()).fetchall()[0][0]
                quiet = 0 if left else quiet + 1
                if time.monotonic() > deadline:
                    self.verdict.wrong.append(
                        f"{what}: {left} batches or cancels never came to rest"
                    )
                    return
                time.sleep(0.5)

    # -- what the server says of it

    def _judge_server(self) -> None:
        crossing = 0
        if self._server is not None:
            told, deadlocks = read_log(self._server.log_path)
            others = [text for text in deadlocks if "/* crossing */" not in text]
            crossing = len(deadlocks) - len(others)
            self.verdict.add("no deadlock in the server's log but of callers who cross",
                             len(deadlocks), others)  # fmt: skip
            unknown = {s: n for s, n in told.items() if not _OF_THE_GAME.fullmatch(s)}
            self.verdict.add("the server told no error that should not be", sum(told.values()),
                             [f"{state}: {n} times" for state, n in unknown.items()])  # fmt: skip
            for state, n in sorted(told.items()):
                self.verdict.counts[f"server's log: {state}"] = n
        # What the counter had since it was last read dies with the server: it may be less.
        counted = sum(self._deadlocks)
        self.verdict.counts["deadlocks in the server's counter"] = counted
        self.verdict.counts["deadlocks of callers who cross, by the log"] = crossing
        wrong = [f"{counted} counted, {crossing} of them crossing"] if counted > crossing else []
        self.verdict.add("no deadlock in the server's counter but those", counted, wrong)
        waited = self._longest_wait
        self.verdict.add(f"nobody waited for a lock longer than {LONGEST_WAIT:.0f} s", 1,
                         [f"{waited:.1f} s"] if waited > LONGEST_WAIT else [])  # fmt: skip


_IN_FLIGHT = """
select (select count(*) from pyjobs_internal.batch b
        join pyjobs_internal.job j on j.id = b.job_id and j.run = b.run
        join pyjobs_internal.stage s on s.job_id = b.job_id and s.run = b.run and s.no = b.stage
        left join pyjobs_internal.queue q on q.name = j.queue
        where b.state = 'leased' or (b.state = 'pending' and s.open
            and j.status in ('PENDING', 'RETRY') and not j.paused
            and not coalesce(q.paused, false)))
    + (select count(*) from pyjobs_internal.job where status = 'CANCELING')
"""


def read_log(path: Path) -> tuple[Counter[str], list[str]]:
    """How often the server told each SQLSTATE, and each deadlock with who was in it."""
    told: Counter[str] = Counter()
    deadlocks: list[str] = []
    line_of = re.compile(r"([0-9A-Z]{5})\|(\d+)\|([^|]*)\|(\w+): +(.*)")
    open_in: str | None = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = line_of.match(line)
            if found:
                state, pid, application, level, text = found.groups()
                if level in ("ERROR", "FATAL", "PANIC"):
                    told[state] += 1
                    open_in = None
                    if state == "40P01":
                        deadlocks.append(f"{application}: {text}")
                        open_in = pid
                elif open_in == pid and level == "DETAIL":
                    deadlocks[-1] += f"\n{text}"
                else:
                    open_in = None
            elif open_in is not None:
                deadlocks[-1] += f"\n{line.rstrip()}"
    return told, deadlocks


def blow(options: Options, server: embedded.EmbeddedServer | None = None) -> verdict.Verdict:
    """A storm on a server of its own, or in the database of ``options.url``.

    ``server``: the embedded one on which that database is, to be killed as well.
    """
    if options.url is not None:
        return Storm(options, options.url, options.pooler_url or options.url, server).run()
    with embedded.server(settings=SETTINGS) as own:
        with psycopg.connect(own.url(), autocommit=True) as conn:
            conn.execute("create database storm")
        url = own.url("storm")
        if not options.pooler:
            return Storm(options, url, url, own).run()
        through = own.url("storm", tcp=True)
        with Pooler(through, {"server_login_retry": "1"}) as pooler:
            return Storm(options, url, pooler.through(through), own).run()
