"""A database whose functions carry yields, and sessions that go on one at a time.

A session that passes a yield says so by a notice, which the server sends at once, and then takes
and gives back an advisory lock of its own for that very step. The scheduler stops a session at a
step by holding that lock, and lets it go by giving it back. Whether a session that says nothing
runs or waits for a lock is asked of the server (``pg_blocking_pids``), never guessed from the time.
"""

from __future__ import annotations

import dataclasses
import json
import selectors
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from pyjobs import embedded, migrate
from tests.explorer.instrument import instrument, unbound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.explorer.instrument import Instrumented

SETTINGS = {
    **embedded.THROWAWAY,
    "autovacuum": "off",
    "jit": "off",
    # Deadlocks are the scheduler's to find and to break, as time decides nothing here.
    "deadlock_timeout": "1h",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "synchronous_commit": "off",
}
# Something is broken if a step takes longer than this; it decides nothing else.
STUCK = 60.0

_SUPPORT = """
drop schema if exists explorer cascade;
create schema explorer;
create function explorer.at(place int) returns boolean language plpgsql as $$
declare
    me constant int := nullif(current_setting('explorer.session', true), '');
    step int;
begin
    if me is not null then
        step := nextval('pg_temp.explorer_step');
        raise notice '%', place;
        perform pg_advisory_lock_shared(me, step);
        perform pg_advisory_unlock_shared(me, step);
    end if;
    return true;
end
$$;
create function explorer.pass(place int) returns boolean language sql as $$ select {passed} $$;
-- Keeps the advisory locks of this transaction past its end: a transaction's locks on rows end with
-- its number, its advisory locks a moment later.
create function explorer.linger() returns int language sql as $$
    select count(case when l.mode = 'ExclusiveLock'
                      then pg_advisory_lock((l.classid::bigint << 32) | l.objid::bigint)
                      else pg_advisory_lock_shared((l.classid::bigint << 32) | l.objid::bigint) end
                 is null)::int
    from pg_locks l
    where l.pid = pg_backend_pid() and l.locktype = 'advisory' and l.objsubid = 1 and l.granted
$$;
create function explorer.forget() returns void language plpgsql
    set session_replication_role = replica as $$
begin
    delete from pyjobs_internal.batch;
    delete from pyjobs_internal.claim_mark;
    delete from pyjobs_internal.stage;
    delete from pyjobs_internal.job_start;
    delete from pyjobs_internal.offer;
    delete from pyjobs_internal.history;
    delete from pyjobs_internal.refusal;
    delete from pyjobs_internal.worker;
    delete from pyjobs_internal.queue;
    delete from pyjobs_internal.job;
    update pyjobs_internal.test_clock set ahead = '0';
    perform setval('pyjobs_internal.job_id', 1, false);
    perform setval('pyjobs_internal.batch_id', 1, false);
    perform setval('pyjobs_internal.offer_pass', 1, false);
end
$$;
"""
_BOUND = """
create or replace function pyjobs_internal.bound_wait(until timestamptz) returns void
language sql as $$ select null $$;
"""
STATE = b"""
select json_build_object(
    'now', (select clock_timestamp() + ahead from pyjobs_internal.test_clock),
    'job', (select json_agg(j order by j.id) from pyjobs_internal.job j),
    'stage', (select json_agg(s order by s.job_id, s.run, s.no) from pyjobs_internal.stage s),
    'batch', (select json_agg(to_jsonb(b) || jsonb_build_object('quiet',
        b.xmax = '0'::xid or b.xmax = b.xmin) order by b.id) from pyjobs_internal.batch b),
    'offer', (select json_agg(o order by o.id) from pyjobs_internal.offer o),
    'start', (select json_agg(m) from pyjobs_internal.job_start m),
    'queue', (select json_agg(q) from pyjobs_internal.queue q),
    'history', (select json_agg(h order by h.id) from pyjobs_internal.history h))
"""


class TroubleError(Exception):
    """A call of the explorer's own failed."""


class Database:
    """A migrated database whose functions carry yields."""

    def __init__(
        self,
        server_url: str,
        name: str,
        root: Path | None = None,
        changes: dict[str, str] | None = None,
        *,
        every_statement: bool = False,
    ) -> None:
        root = root or migrate.schema_root()
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute(f"drop database if exists {name} with (force)".encode())
            conn.execute(f"create database {name}".encode())
        self.url = psycopg.conninfo.make_conninfo(server_url, dbname=name)
        migrate.migrate(self.url)
        self.code: Instrumented = instrument(root, changes)
        self.every_statement = every_statement
        for_tests = [
            (root / "sql" / "testing" / name).read_text("utf-8")
            for name in ("settable_clock.sql", "mark_every_claim.sql")
        ]
        passed = "explorer.at(place)" if every_statement else "true"
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(_SUPPORT.replace("{passed}", passed).encode())
            for text in self.code.texts.values():
                conn.execute(unbound(text).encode())
            conn.execute(_BOUND.encode())
            for text in for_tests:
                conn.execute(text.encode())

    def is_point(self, place: int) -> bool:
        """Whether sessions stop at this place."""
        return self.every_statement or self.code.places[place].shared


@dataclasses.dataclass
class Answer:
    """What a statement came to."""

    rows: list[dict[str, Any]]
    sqlstate: str | None = None
    message: str = ""
    detail: str = ""
    tag: str = ""


class Link:
    """One connection, as the scheduler sees it."""

    def __init__(self, database: Database, number: int) -> None:
        self.number = number
        self.conn = pq.PGconn.connect(database.url.encode())
        if self.conn.status != pq.ConnStatus.OK:
            raise TroubleError(self.conn.error_message.decode())
        self.fd = self.conn.socket
        self.pid = self.conn.backend_pid
        self.step = 0  # yields passed in the life of the connection
        self.places: list[int] = []  # passed and not yet looked at
        self.busy = False
        self.conn.notice_handler = self._hear
        self._answers: list[Answer] = []

    def prepare(self) -> None:
        """Become a session with yields."""
        self.run("create temp sequence explorer_step")
        self.run(f"set explorer.session = '{self.number}'")

    def _hear(self, result: Any) -> None:
        # The first field that follows is the severity; a notice of ours is a bare number.
        text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
        if text and text.isdigit():
            self.step += 1
            self.places.append(int(text))

    def send(self, query: str) -> None:
        self.conn.send_query(query.encode())
        self.busy = True

    def hear(self) -> list[Answer] | None:
        """Take in what has come; the answers once all are there."""
        self.conn.consume_input()
        while not self.conn.is_busy():
            result = self.conn.get_result()
            if result is None:
                self.busy = False
                answers, self._answers = self._answers, []
                return answers
            self._answers.append(_answer(result))
        return None

    def run(self, query: str) -> list[Answer]:
        """Run a query of the explorer's own to its end."""
        result = self.conn.exec_(query.encode())
        answer = _answer(result)
        if answer.sqlstate:
            raise TroubleError(f"{answer.sqlstate} {answer.message}: {query[:200]}")
        return [answer]

    def value(self, query: str) -> str:
        """The one value that a query of the explorer's own returns, as text."""
        result = self.conn.exec_(query.encode())
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise TroubleError(f"{result.error_message.decode()}: {query[:200]}")
        value = result.get_value(0, 0)
        return "" if value is None else value.decode()

    def close(self) -> None:
        self.conn.finish()


def _answer(result: Any) -> Answer:
    if result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        names = [(result.fname(c) or b"").decode() for c in range(result.nfields)]
        rows = [
            {
                name: None if (v := result.get_value(r, c)) is None else v.decode()
                for c, name in enumerate(names)
            }
            for r in range(result.ntuples)
        ]
        return Answer(rows, tag=(result.command_status or b"").decode())

    def field(which: pq.DiagnosticField) -> str:
        return (result.error_field(which) or b"").decode()

    return Answer(
        [],
        field(pq.DiagnosticField.SQLSTATE) or "XX000",
        field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message.decode(),
        field(pq.DiagnosticField.MESSAGE_DETAIL),
    )


class Control(Link):
    """The scheduler's own connection: the gates, who waits for whom, what the tables hold."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, 0)

    def blockers(self, pids: list[int]) -> dict[int, set[int]]:
        """Who really waits for a lock, and for whom."""
        found = self.value(
            "select coalesce(json_agg(json_build_array(p, pg_blocking_pids(p))), '[]')"
            f" from unnest(array{pids}::int[]) p"
        )
        # Who waits for us stands at a gate.
        return {pid: set(by) for pid, by in json.loads(found) if set(by) - {self.pid}}

    def state(self) -> dict[str, Any]:
        """What the tables hold."""
        result = self.conn.exec_(STATE)
        value = result.get_value(0, 0)
        if value is None:
            raise TroubleError(result.error_message.decode())
        found: dict[str, Any] = json.loads(value)
        return found


def settle(
    links: list[Link],
    control: Control,
    is_settled: Callable[[Link, list[Answer] | None], bool],
) -> list[Link]:
    """Take in what comes until each of ``links`` has come to rest, or really waits for a lock.

    ``is_settled(link, answers)`` is told what came of a link. Returns those that wait.
    """
    running = {link.fd: link for link in links}
    began = time.monotonic()
    pause = 0.001
    with selectors.DefaultSelector() as selector:
        for fd in running:
            selector.register(fd, selectors.EVENT_READ)

        def hear(link: Link) -> bool:
            if is_settled(link, link.hear()):
                selector.unregister(link.fd)
                del running[link.fd]
                return True
            return False

        while running:
            came = selector.select(pause)
            for key, _ in came:
                hear(running[key.fd])
            if came:
                continue
            blocked = control.blockers([link.pid for link in running.values()])
            # While one of them still runs, what the others wait for may pass.
            if len(blocked) == len(running):
                # A notice that was sent before the wait has arrived by now.
                heard = [hear(link) for link in list(running.values())]
                if not any(heard):
                    return list(running.values())
            pause = min(pause * 2, 0.05)
            if time.monotonic() - began > STUCK:
                raise TroubleError("a session neither goes on nor waits for a lock")
    return []
