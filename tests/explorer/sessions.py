"""A database whose functions carry yields, and sessions that go on one at a time.

A session that passes a yield says so by a notice, which the server sends at once, and then takes
and gives back an advisory lock of its own for that very step. The scheduler stops a session at a
step by holding that lock, and lets it go by giving it back. Whether a session that says nothing
runs or waits for a lock is asked of the server (``pg_blocking_pids``), never guessed from the time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from pyjobs import embedded, migrate
from tests.explorer.instrument import CONSTANT, instrument, unbound

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
# The plans that big tables have, whatever the vacuum says of these: a function called in a query
# is then called as often in each schedule.
_PLANS = ("enable_seqscan", "enable_bitmapscan")
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
"""
# What the tables held after a set-up is kept, and put back before each schedule. {tables} and
# {sequences} are all that the schema has but for what is constant.
_SCENES = """
-- The time is a number that grows by one microsecond whenever it is asked for: a schedule repeats
-- to the last bit.
create sequence explorer.tick;
create or replace function pyjobs_internal.clock() returns timestamptz
language sql volatile parallel safe as $$
    select '2100-01-01 00:00:00Z'::timestamptz + t.ahead
        + nextval('explorer.tick') * interval '1 microsecond'
    from pyjobs_internal.test_clock t
$$;
create type explorer.lease as (id bigint, epoch bigint);
create table explorer.kept_sequence (scene int, name regclass, value bigint, called boolean);
{kept_tables}
-- Records what is leased and claims what there is until there is nothing, each call in a
-- transaction of its own.
create procedure explorer.work(rounds int) language plpgsql as $$
declare
    batch record;
    none boolean;
begin
    for n in 1 .. rounds loop
        none := true;
        for batch in
            select * from unnest(array(
                select (b.id, b.lease_epoch)::explorer.lease from pyjobs_internal.batch b
                where b.state = 'leased' order by b.id))
        loop
            none := false;
            perform pyjobs.record_batch(batch.id, batch.epoch);
            commit;
        end loop;
        perform pyjobs.claim_next_job('last', '{q,r}', 10);
        exit when not found and none;
        commit;
    end loop;
end
$$;
create function explorer.forget() returns void language plpgsql as $$
begin
    {deletes}
    insert into pyjobs_internal.test_clock (ahead) values ('0');
    {restarts}
end
$$;
create function explorer.keep(scene int) returns void language plpgsql as $$
begin
    {keeps}
end
$$;
create function explorer.put_back(scene int) returns void language plpgsql as $$
begin
    {deletes}
    {puts}
    perform setval(k.name, k.value, k.called) from explorer.kept_sequence k
    where k.scene = put_back.scene;
end
$$;
"""
_BOUND = """
create or replace function pyjobs_internal.bound_wait(until timestamptz) returns void
language sql as $$ select null $$;
"""
_STATE = b"""
select json_build_object(
    'now', (select '2100-01-01 00:00:00Z'::timestamptz + c.ahead
        + t.last_value * interval '1 microsecond'
        from pyjobs_internal.test_clock c, explorer.tick t),
    'job', (select json_agg(j order by j.id) from pyjobs_internal.job j),
    'stage', (select json_agg(s order by s.job_id, s.run, s.no) from pyjobs_internal.stage s),
    'batch', (select json_agg(to_jsonb(b) || jsonb_build_object('quiet',
        b.xmax = '0'::xid or b.xmax = b.xmin) order by b.id) from pyjobs_internal.batch b),
    'offer', (select json_agg(o order by o.id) from pyjobs_internal.offer o),
    'start', (select json_agg(m) from pyjobs_internal.job_start m),
    'queue', (select json_agg(q) from pyjobs_internal.queue q),
    'mark', (select json_agg(m) from pyjobs_internal.claim_mark m),
    'history', (select json_agg(h order by h.id) from pyjobs_internal.history h))
"""


_BLOCKERS = b"""
select coalesce(json_agg(json_build_array(p, pg_blocking_pids(p))), '[]') from unnest($1::int[]) p
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
            for setting in _PLANS:
                conn.execute(f"alter database {name} set {setting} = off".encode())
        self.url = psycopg.conninfo.make_conninfo(server_url, dbname=name)
        migrate.migrate(self.url, root=root)
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
            self.tables, scenes = _scenes(conn)
            conn.execute(scenes.encode())

    def is_point(self, place: int) -> bool:
        """Whether sessions stop at this place."""
        return self.every_statement or self.code.places[place].shared


def _scenes(conn: psycopg.Connection[Any]) -> tuple[list[str], str]:
    """The tables, and the functions that keep and put back what they hold."""
    found = conn.execute(
        "select c.relname, c.relkind::text, array(select quote_ident(a.attname)"
        " from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " and a.attgenerated = '' order by a.attnum)"
        " from pg_class c where c.relnamespace = 'pyjobs_internal'::regnamespace"
        " and c.relkind in ('r', 'S', 'p') and not c.relispartition"
        " and c.relname <> all (%s) order by c.relname",
        [sorted(CONSTANT)],
    ).fetchall()
    tables = [(name, ", ".join(columns)) for name, kind, columns in found if kind != "S"]
    sequences = [
        *(f"pyjobs_internal.{name}" for name, kind, _ in found if kind == "S"),
        "explorer.tick",
    ]
    parts: dict[str, list[str]] = defaultdict(list)
    for name, columns in tables:
        kept = f"explorer.kept_{name}"
        parts["kept_tables"].append(
            f"create table {kept} as select 0 as kept_scene, 0::bigint as kept_order, {columns}"
            f" from pyjobs_internal.{name} where false;"
            f" create index on {kept} (kept_scene, kept_order);"
        )
        parts["deletes"].append(f"delete from pyjobs_internal.{name};")
        parts["keeps"].append(
            f"insert into {kept} select keep.scene, row_number() over (order by t.ctid), {columns}"
            f" from pyjobs_internal.{name} t;"
        )
        parts["puts"].append(
            f"if exists (select from {kept} where kept_scene = put_back.scene) then"
            f" insert into pyjobs_internal.{name} ({columns}) overriding system value"
            f" select {columns} from {kept} where kept_scene = put_back.scene"
            " order by kept_order; end if;"
        )
    for name in sequences:
        parts["restarts"].append(f"perform setval('{name}', 1, false);")
        parts["keeps"].append(
            f"insert into explorer.kept_sequence select keep.scene, '{name}', s.last_value,"
            f" s.is_called from {name} s;"
        )
    text = _SCENES
    for name, lines in parts.items():
        text = text.replace(f"{{{name}}}", "\n    ".join(lines))
    return [f"pyjobs_internal.{name}" for name, _ in tables], text


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

    def count_steps(self) -> None:
        """Ask the server how many yields were passed."""
        asked = "select case when is_called then last_value else 0 end from pg_temp.explorer_step"
        self.step = int(self.value(asked))

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

    def await_end(self) -> None:
        """Close it once the server's side has ended; all its locks are free then."""
        with contextlib.suppress(psycopg.OperationalError):
            while self.conn.status == pq.ConnStatus.OK:
                select.select([self.fd], [], [], STUCK)
                self.conn.consume_input()
        self.close()

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
        for name, query in (("state", _STATE), ("blockers", _BLOCKERS)):
            self.conn.prepare(name.encode(), query)
        self._scenes: dict[tuple[str, ...], tuple[int, dict[str, Any]]] = {}
        self._kept = 0
        self._posted = False
        # Another connection, as the setting would throw away the plans of this one each time.
        self._hands = Link(database, 0)
        self._hands.run("set session_replication_role = replica")

    def set_scene(self, setup: tuple[str, ...]) -> dict[str, Any]:
        """Make the tables what they are after ``setup``; what they hold then.

        The statements themselves run once. A scene that somebody had in hand, and gave up, is made
        anew each time: a row that is put back is one that nobody has touched.
        """
        number, state = self._scenes.get(setup, (None, {}))
        if number:
            self._hands.value(f"select explorer.put_back({number})")
            return state
        self._hands.value("select explorer.forget()")
        for statement in setup:
            self.run(f"begin; {statement}; commit")
        state = self.state()
        if number is None:
            self._scenes[setup] = (0, state)
            if all(batch["quiet"] for batch in state["batch"] or []):
                self._kept += 1
                self._hands.value(f"select explorer.keep({self._kept})")
                self._hands.value(f"select explorer.put_back({self._kept})")
                if self.state() == state:
                    self._scenes[setup] = (self._kept, state)
        return state

    def close(self) -> None:
        self._hands.close()
        super().close()

    def post(self, query: str) -> None:
        """Run a query of which only the effect matters, and do not wait for its end."""
        self.settle()
        self.conn.send_query(query.encode())
        self.conn.flush()
        self._posted = True

    def settle(self) -> None:
        """Wait for the end of what was posted."""
        if self._posted:
            self._posted = False
            while (result := self.conn.get_result()) is not None:
                if result.status != pq.ExecStatus.TUPLES_OK:
                    raise TroubleError(result.error_message.decode())

    def run(self, query: str) -> list[Answer]:
        self.settle()
        return super().run(query)

    def value(self, query: str) -> str:
        self.settle()
        return super().value(query)

    def blockers(self, pids: list[int]) -> dict[int, set[int]]:
        """Who really waits for a lock, and for whom."""
        self.settle()
        given = "{" + ",".join(map(str, pids)) + "}"
        result = self.conn.exec_prepared(b"blockers", [given.encode()])
        found = result.get_value(0, 0)
        if found is None:
            raise TroubleError(result.error_message.decode())
        # Who waits for us stands at a gate.
        return {pid: set(by) for pid, by in json.loads(found) if set(by) - {self.pid}}

    def activity(self, pids: list[int]) -> str:
        """What the server says of these sessions, for somebody who looks for what went wrong."""
        self.settle()
        given = "{" + ",".join(map(str, pids)) + "}"
        return self.value(f"""
            select json_agg(json_build_object('pid', a.pid, 'state', a.state,
                'event', a.wait_event_type || ' ' || a.wait_event, 'by', pg_blocking_pids(a.pid),
                'we', pg_backend_pid(), 'locks', (
                    select json_agg(concat_ws(' ', l.locktype, l.classid, l.objid, l.transactionid,
                        l.mode, l.granted)) from pg_locks l
                    where l.pid = a.pid and (not l.granted or l.locktype = 'advisory'))))
            from pg_stat_activity a where a.pid = any ('{given}')""")

    def state(self) -> dict[str, Any]:
        """What the tables hold."""
        self.settle()
        result = self.conn.exec_prepared(b"state", [])
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
    waited = 0.0  # by its own pauses: a machine that was put to sleep has not waited
    pause = 0.0003

    def hear(link: Link) -> bool:
        if is_settled(link, link.hear()):
            del running[link.fd]
            return True
        return False

    while running:
        came, _, _ = select.select(list(running), [], [], pause)
        for fd in came:
            hear(running[fd])
        if came:
            continue
        waited += pause
        blocked = control.blockers([link.pid for link in running.values()])
        # While one of them still runs, what the others wait for may pass.
        if len(blocked) == len(running):
            # A notice that was sent before the wait has arrived by now.
            heard = [hear(link) for link in list(running.values())]
            if not any(heard):
                return list(running.values())
        pause = min(pause * 2, 0.05)
        if waited > STUCK:
            told = control.activity([link.pid for link in running.values()])
            raise TroubleError(f"a session neither goes on nor waits for a lock: {told}")
    return []
