"""Bring a database to this version's schema: tables by yoyo, functions by checksum.

Everything happens on one connection that holds one advisory lock, so that of several deployments
at once one works and the others find nothing to do, and so that the lock lives exactly as long as
the work: while the last statement of a killed deployment still runs, the others stay out.

What is pending, migrations, functions and grants, is applied in one transaction. Whoever is killed
in it leaves the database as it was; workers see the old schema or the new one and nothing between.
Only a migration that says ``-- transactional: false`` is on its own.

Both kinds of text live at the top of the source tree, ``migrations/`` and ``sql/``, and travel
inside the wheel. The bookkeeping is in a schema of its own, ``pyjobs_deploy``: yoyo's tables, and
``deployed``, which holds for each file of ``sql/`` its sha256 and the objects that it made, so that
what a file no longer makes can be dropped.

Connect directly or through a session-pooling proxy; a transaction-pooling one cannot hold the lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import hashlib
import importlib.resources
import io
import logging
import secrets
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import tenacity
import yoyo
from psycopg import errors
from yoyo.backends import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.exceptions import BadMigration
from yoyo.migrations import topological_sort

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Connection = psycopg.Connection[tuple[Any, ...]]

__all__ = [
    "MigrationError",
    "Report",
    "migrate",
    "roles_sql",
    "rollback",
    "schema_root",
    "schema_sql",
]

log = logging.getLogger(__name__)

# The letters "pyjobs" as a number: the advisory lock of every deployment.
_LOCK_KEY = 0x70796A6F6273

# Deployed in this order; a file that needs something of a later one is tried again after it.
_FOLDERS = ("data", "internal", "reader", "views", "producer", "worker", "operator")
# Last, and again whenever anything was deployed: a dropped function takes its grants along.
_GRANTS = "grants.sql"
# What tests put over the schema.
_NOT_DEPLOYED = ("testing",)


# Yoyo's tables, as its own version 2 has them, and ours. Here, so that schema_sql has the same.
_BOOKKEEPING = """\
create schema if not exists pyjobs_deploy;
comment on schema pyjobs_deploy is 'What of pyjobs was deployed here. Written by its migrations.';
create table if not exists pyjobs_deploy._yoyo_migration (
    migration_hash varchar(64) primary key,
    migration_id varchar(255),
    applied_at_utc timestamp);
create table if not exists pyjobs_deploy._yoyo_log (
    id varchar(36) primary key,
    migration_hash varchar(64),
    migration_id varchar(255),
    operation varchar(10),
    username varchar(255),
    hostname varchar(255),
    comment varchar(255),
    created_at_utc timestamp);
create table if not exists pyjobs_deploy._yoyo_version (
    version int primary key,
    installed_at_utc timestamp);
create table if not exists pyjobs_deploy.yoyo_lock (
    locked int default 1 primary key,
    ctime timestamp,
    pid int not null);
create table if not exists pyjobs_deploy.deployed (
    path text primary key,
    sha256 text not null,
    objects text[] not null,
    deployed_at timestamptz not null default now());
insert into pyjobs_deploy._yoyo_version (version, installed_at_utc)
values (2, now() at time zone 'utc')
on conflict do nothing;
"""

# Everything that a file of sql/ can make, named as DROP wants it.
_OBJECTS = """\
select o.class::oid::bigint, o.oid::bigint, o.xmin,
    case i.type when 'composite type' then 'type' else i.type end || ' ' || i.identity as object
from (
    select 'pg_catalog.pg_proc'::regclass as class, p.oid, p.xmin, p.pronamespace as namespace
    from pg_catalog.pg_proc p
    union all
    select 'pg_catalog.pg_class'::regclass, c.oid, c.xmin, c.relnamespace
    from pg_catalog.pg_class c
    where c.relkind in ('v', 'm', 'c')
    union all
    select 'pg_catalog.pg_type'::regclass, t.oid, t.xmin, t.typnamespace
    from pg_catalog.pg_type t
    where t.typtype in ('d', 'e')
    union all
    select 'pg_catalog.pg_trigger'::regclass, g.oid, g.xmin, c.relnamespace
    from pg_catalog.pg_trigger g
    join pg_catalog.pg_class c on c.oid = g.tgrelid
    where not g.tgisinternal
) o
join pg_catalog.pg_namespace n on n.oid = o.namespace and n.nspname in ('pyjobs', 'pyjobs_internal')
cross join lateral pg_catalog.pg_identify_object(o.class, o.oid, 0) i"""

# Are the grants not in force? A restore where the roles are missing, or without privileges, leaves
# out the revokes as well.
_PUBLIC_MAY_CALL = """\
select exists (
    select from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n
        on n.oid = p.pronamespace and n.nspname in ('pyjobs', 'pyjobs_internal')
    where pg_catalog.has_function_privilege('public', p.oid, 'execute'))"""

# What a file made is what is no older than the row that notes the file, written after it in the
# same subtransaction.
_NOTE = """\
insert into pyjobs_deploy.deployed as d (path, sha256, objects)
values (%(path)s, %(sha256)s, '{}')
on conflict (path) do update
set sha256 = excluded.sha256, objects = excluded.objects, deployed_at = excluded.deployed_at;
update pyjobs_deploy.deployed d
set objects = array(
    select o.object from (OBJECTS) o
    where pg_catalog.age(o.xmin) <= pg_catalog.age(d.xmin)
    order by o.object)
where d.path = %(path)s;
""".replace("OBJECTS", _OBJECTS)

# Granting writes to everything, and makes nothing.
_NOTE_GRANTS = _NOTE.partition("update pyjobs_deploy")[0]

# What directly needs an object. A rule stands for its view, a row type for its relation.
_DEPENDENTS = """\
with recursive type (oid) as (
    select t.oid from pg_catalog.pg_type t
    where %(class)s::oid = 'pg_catalog.pg_class'::regclass and t.typrelid = %(oid)s
    union
    select a.oid from type t join pg_catalog.pg_type a on a.typelem = t.oid
), needs (class, oid) as (
    select
        case when r.oid is null then d.classid else 'pg_catalog.pg_class'::regclass end,
        coalesce(r.ev_class, d.objid)
    from pg_catalog.pg_depend d
    left join pg_catalog.pg_rewrite r
        on d.classid = 'pg_catalog.pg_rewrite'::regclass and r.oid = d.objid
    where d.deptype = 'n' and (
        (d.refclassid = %(class)s and d.refobjid = %(oid)s)
        or (d.refclassid = 'pg_catalog.pg_type'::regclass
            and d.refobjid in (select oid from type)))
)
select distinct n.class::bigint, n.oid::bigint,
    case i.type when 'composite type' then 'type' else i.type end || ' ' || i.identity
from needs n
cross join lateral pg_catalog.pg_identify_object(n.class, n.oid, 0) i
where (n.class, n.oid) <> (%(class)s::oid, %(oid)s::oid)
order by 3"""

# A file that failed for one of these may find what it misses after another file.
_MISSING = (
    errors.UndefinedTable,
    errors.UndefinedFunction,
    errors.UndefinedObject,
    errors.UndefinedColumn,
)
# `create or replace` cannot do it (another result, another column, another kind): drop, then make.
_UNREPLACEABLE = (
    errors.InvalidFunctionDefinition,
    errors.InvalidTableDefinition,
    errors.WrongObjectType,
    errors.DuplicateObject,
    errors.DuplicateFunction,
    errors.DuplicateTable,
)
# Somebody held a lock that a migration needs: all is rolled back, so that nobody queues behind it.
_TRANSIENT = (errors.LockNotAvailable, errors.DeadlockDetected)

# What a role or a database may have set for its sessions, and must not hold here.
_SETTINGS = {
    "client_encoding": "UTF8",
    "client_min_messages": "warning",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "lock_timeout": "5s",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}


class MigrationError(Exception):
    """A deployment that did not happen. The message says what to do; nothing was changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What a deployment did, or with ``planned`` would do.

    Attributes:
        migrations: ids of migrations applied (by ``rollback``: undone), in order.
        files: files of ``sql/`` deployed, relative to it, in order.
        removed: files deployed earlier that are no more.
        dropped: objects that no file makes any longer, as ``function pyjobs.f(int)``.
        planned: nothing was changed; this is what would be done.
    """

    migrations: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    planned: bool = False

    @property
    def changed(self) -> bool:
        """Whether there was anything to do."""
        return bool(self.migrations or self.files or self.removed or self.dropped)


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    path: str
    text: str
    sha256: str


def schema_root() -> Path:
    """The folder that holds ``migrations/`` and ``sql/``: inside the wheel, or the source tree."""
    packaged = Path(str(importlib.resources.files("pyjobs") / "_schema"))
    if packaged.is_dir():
        return packaged
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "migrations").is_dir():
        return checkout
    raise MigrationError(
        f"this pyjobs lacks its schema: no {packaged}, and {checkout} is no source tree"
    )


def migrate(
    conninfo: str,
    *,
    plan: bool = False,
    root: str | os.PathLike[str] | None = None,
    wait: float | None = None,
) -> Report:
    """Bring the database to this version's schema. Safe to repeat, and from many places at once.

    Args:
        conninfo: any libpq connection string or URL; the role must own the database, or may
            create schemas in it. The four roles are made too, or, where that is not allowed, have
            to be there (``roles_sql``).
        plan: say what would be done, change nothing, wait for nobody.
        root: another folder with ``migrations/`` and ``sql/``.
        wait: seconds to wait for another deployment; ``None`` waits as long as it takes.

    Raises MigrationError, and psycopg.OperationalError where there is no connection.
    """
    schema = _Schema.read(root)
    with _connect(conninfo) as conn, _explained():
        if plan:
            return _plan(conn, schema)
        with _alone(conn, wait):
            return _bring_up(conn, schema)


def rollback(
    conninfo: str,
    *,
    count: int | None = 1,
    root: str | os.PathLike[str] | None = None,
    wait: float | None = None,
) -> Report:
    """Undo the last ``count`` migrations, or all of them (``None``), with their data.

    All functions and views are dropped first, since they belong to the newest tables; install the
    version to go back to and let it ``migrate``. After the last migration nothing is left but the
    roles, which other databases of the server may use.
    """
    schema = _Schema.read(root)
    with _connect(conninfo) as conn, _explained(), _alone(conn, wait):
        return _in_transaction(conn, lambda: _take_down(conn, schema, count))


def roles_sql(root: str | os.PathLike[str] | None = None) -> str:
    """What an administrator runs once where the database's owner may not make roles."""
    return _Schema.read(root).roles()


def schema_sql(root: str | os.PathLike[str] | None = None, *, transaction: bool = True) -> str:
    """The whole schema as one script of plain SQL, for deploying with another tool.

    It makes the same as ``migrate`` in a database without pyjobs, the bookkeeping included, so
    that a later ``migrate`` goes on from there. ``transaction=False`` leaves out begin and commit,
    for a tool that has a transaction of its own around it; there must be one.
    """
    schema = _Schema.read(root)
    parts = [
        "-- The whole schema of pyjobs, for a database without it. Run it in one transaction:\n"
        "--   pyjobs sql | psql -v ON_ERROR_STOP=1 DATABASE\n",
        "begin;\n" if transaction else "",
        "set local client_min_messages = warning;\n"
        "do $$\n"
        "begin\n"
        "    if to_regclass('pyjobs_deploy.deployed') is not null then\n"
        "        raise exception 'pyjobs is in this database already'\n"
        "            using hint = 'Bring it up to date with: pyjobs migrate';\n"
        "    end if;\n"
        "end\n"
        "$$;\n\n",
        _BOOKKEEPING,
        "set local search_path = pyjobs_deploy;\n",
    ]
    for migration in schema.migrations:
        parts += [
            f"\n-- migrations/{Path(migration.path).name}\n",
            _text(Path(migration.path)),
            "insert into pyjobs_deploy._yoyo_migration"
            " (migration_hash, migration_id, applied_at_utc)\n"
            f"values ({_literal(migration.hash)}, {_literal(migration.id)},"
            " clock_timestamp() at time zone 'utc');\n",
        ]
    parts.append("\nset local search_path = pg_catalog;\nset local check_function_bodies = off;\n")
    # A script cannot try again: here the order of the folders has to be right.
    for file in schema.files:
        note = _NOTE_GRANTS if file.path == _GRANTS else _NOTE
        note = note.replace("%(path)s", _literal(file.path))
        parts += [
            f"\n-- sql/{file.path}\nsavepoint pyjobs_file;\n",
            file.text,
            note.replace("%(sha256)s", _literal(file.sha256)),
            "release savepoint pyjobs_file;\n",
        ]
    parts.append("\ncommit;\n" if transaction else "")
    return "".join(parts)


# -- what should be there


# Yoyo keeps all migrations of the process in one table of its own, by id.
_reading = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True)
class _Schema:
    migrations: tuple[Any, ...]
    files: tuple[_File, ...]

    @classmethod
    def read(cls, root: str | os.PathLike[str] | None) -> _Schema:
        folder = Path(root) if root is not None else schema_root()
        try:
            with _reading:
                found = yoyo.read_migrations(str(folder / "migrations"))
                for migration in found:
                    migration.load()
                ordered = tuple(topological_sort(found))
        except BadMigration as error:
            raise MigrationError(f"a migration cannot be read: {error}") from error
        return cls(ordered, _read_files(folder / "sql"))

    def roles(self) -> str:
        """What makes the roles, where they are not there."""
        found = [m for m in self.migrations if "roles" in m.id]
        return "".join(Path(m.path).read_text(encoding="utf-8") for m in found)


def _read_files(folder: Path) -> tuple[_File, ...]:
    found = []
    for path in folder.rglob("*.sql"):
        relative = path.relative_to(folder)
        if relative.parts[0] in _NOT_DEPLOYED:
            continue
        text = _text(path)
        found.append(
            _File(relative.as_posix(), text, hashlib.sha256(text.encode("utf-8")).hexdigest())
        )
    return tuple(sorted(found, key=_rank))


def _text(path: Path) -> str:
    # The same sha256 whatever line ends a checkout has.
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    return text if text.endswith("\n") else text + "\n"


def _rank(file: _File) -> tuple[int, str]:
    if file.path == _GRANTS:
        return len(_FOLDERS) + 1, ""
    top = file.path.partition("/")[0]
    return (_FOLDERS.index(top) if top in _FOLDERS else len(_FOLDERS)), file.path


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# -- connecting, and being the only one


@contextlib.contextmanager
def _connect(conninfo: str) -> Iterator[Connection]:
    with psycopg.connect(
        conninfo,
        autocommit=True,
        prepare_threshold=None,
        fallback_application_name="pyjobs migrate",
    ) as conn:
        _require_session(conn, conninfo)
        # The first: it may be shorter than the next statement takes.
        conn.execute("set statement_timeout = 0")
        conn.execute(
            "select set_config(s.name, w.value, false) from pg_catalog.pg_settings s"
            " join unnest(%s::text[], %s::text[]) w (name, value) on w.name = s.name",
            [list(_SETTINGS), list(_SETTINGS.values())],
        )
        yield conn


def _require_session(conn: Connection, conninfo: str) -> None:
    """Refuse a pooler that gives a connection another of its sessions for each transaction.

    The lock would be one session's and its release another's, and settings would be left in
    sessions that serve others. Asked of the sessions themselves: what is set on a connection, and
    not there by itself or while another has a transaction open, was set in somebody else's.
    """
    if _one(conn, "select pg_backend_pid()") == conn.info.backend_pid:
        return  # no pooler in between: it would have made up that number
    mark = secrets.token_hex(8)
    look = b"select current_setting('pyjobs.deployer', true)"
    conn.execute("select set_config('pyjobs.deployer', %s, false)", [mark])
    found = [conn.execute(look).fetchone() for _ in range(3)]
    with psycopg.connect(conninfo, prepare_threshold=None) as other:
        # A pooler gives it the session that was used last, and that now stays with it.
        other.execute("select 1")
        found += [conn.execute(look).fetchone() for _ in range(3)]
    if found != [(mark,)] * 6:
        raise MigrationError(
            "this goes through a pooler in transaction mode, and deploying needs a session of its"
            " own; connect directly to the server, or through a pool in session mode"
        )


@contextlib.contextmanager
def _alone(conn: Connection, wait: float | None) -> Iterator[None]:
    """Hold the deployment lock.

    By trying, not by a blocking call: that would hold a snapshot all the while, and a migration
    that builds an index concurrently waits for all snapshots: for those who wait for it.
    """
    deadline = None if wait is None else time.monotonic() + wait
    said = False
    while not _one(conn, "select pg_catalog.pg_try_advisory_lock(%s)", [_LOCK_KEY]):
        if not said:
            log.info("waiting for another deployment (server process %s)", _holder(conn))
            said = True
        if deadline is not None and time.monotonic() > deadline:
            raise MigrationError(
                f"another deployment holds the lock (server process {_holder(conn)})"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        # A lost connection has let go of it already.
        with contextlib.suppress(psycopg.OperationalError):
            conn.execute("select pg_catalog.pg_advisory_unlock(%s)", [_LOCK_KEY])


def _holder(conn: Connection) -> int | None:
    found = _one(
        conn,
        "select min(l.pid) from pg_catalog.pg_locks l"
        " join pg_catalog.pg_database d on d.oid = l.database and d.datname = current_database()"
        " where l.locktype = 'advisory' and l.granted and l.objsubid = 1"
        " and l.classid::bigint << 32 | l.objid::bigint = %s",
        [_LOCK_KEY],
    )
    return None if found is None else int(found)


def _one(conn: Connection, query: str, params: Sequence[Any] = ()) -> Any:
    row = conn.execute(query, params or None).fetchone()
    return None if row is None else row[0]


def _in_transaction(conn: Connection, work: Callable[[], Report]) -> Report:
    """Do the work in one transaction, again where somebody's lock was in the way."""

    def attempt() -> Report:
        try:
            with conn.transaction():
                return work()
        except _TRANSIENT as error:
            log.info("trying again: %s", str(error).partition("\n")[0])
            raise

    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_TRANSIENT),
        stop=tenacity.stop_after_delay(300),
        wait=tenacity.wait_fixed(1),
    )
    try:
        return again(attempt)
    except tenacity.RetryError as error:
        last = error.last_attempt.exception()
        raise MigrationError(
            f"other sessions held the locks that it needs for five minutes: {last}"
        ) from last


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What the server refuses becomes our error; that it is gone stays psycopg's."""
    try:
        yield
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise MigrationError(_explain(error)) from error
    except BadMigration as error:
        raise MigrationError(str(error)) from error


def _explain(error: psycopg.Error, where: str = "", text: str = "") -> str:
    """The server's message with its place, detail and hint."""
    diag = error.diag
    parts = [diag.message_primary or str(error)]
    if text and diag.statement_position:
        line = text.count("\n", 0, int(diag.statement_position) - 1) + 1
        where = f"{where}:{line}"
    if where:
        parts[0] = f"{where}: {parts[0]}"
    if diag.message_detail:
        parts.append(diag.message_detail)
    if diag.message_hint:
        parts.append(diag.message_hint)
    elif isinstance(error, errors.InsufficientPrivilege):
        parts.append("Connect as the role that owns the database and all of pyjobs in it.")
    return "\n".join(parts)


# -- tables, by yoyo


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """Yoyo on our connection, and inside our transaction."""

    def __init__(self, conn: Connection) -> None:
        self._own = conn
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, conn.info.dbname, {})
        super().__init__(uri, "_yoyo_migration")

    def connect(self, dburi: DatabaseURI) -> Connection:  # noqa: ARG002
        self.schema = "pyjobs_deploy"
        return self._own

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """As yoyo's, where the user has no name, and without asking a name server."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError, ImportError):
            user = "unknown"
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    @contextlib.contextmanager
    def disable_transactions(self) -> Iterator[None]:
        """As yoyo's, but within a transaction of ours, as every rollback is: there it stays."""
        if self._in_transaction:
            yield
            return
        with super().disable_transactions():
            yield

    def apply(self, migration: Any) -> None:
        """Apply it and mark it applied, both in the transaction that is open, if one is."""
        self._step(migration, "apply")
        self.mark_one(migration, log=False)

    def undo(self, migration: Any) -> None:
        """Roll it back and unmark it."""
        self._step(migration, "rollback")
        self.unmark_one(migration, log=False)

    def _step(self, migration: Any, direction: str) -> None:
        # Makes yoyo use savepoints where we have a transaction open.
        self._in_transaction = (
            self._own.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
        )
        # Yoyo prints the rows that a statement returns.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                migration.process_steps(self, direction)
            except psycopg.Error as error:
                if isinstance(error, _TRANSIENT):
                    raise
                raise MigrationError(
                    _explain(error, f"migrations/{Path(migration.path).name}")
                ) from error
        self.log_migration(migration, direction)
        log.info("%s: %s", migration.id, direction)


def _applied(conn: Connection) -> list[str]:
    """Ids of the migrations applied, and that only if there is a place to look."""
    if _one(conn, "select to_regclass('pyjobs_deploy._yoyo_migration') is null"):
        return []
    rows = conn.execute(
        "select migration_id from pyjobs_deploy._yoyo_migration order by applied_at_utc"
    )
    return [row[0] for row in rows]


def _pending(conn: Connection, schema: _Schema) -> list[Any]:
    applied = set(_applied(conn))
    unknown = sorted(applied - {m.id for m in schema.migrations})
    if unknown:
        raise MigrationError(
            f"this database is newer than this pyjobs: it has {', '.join(unknown)}."
            " Install the version that it was migrated with, or a newer one."
        )
    return [m for m in schema.migrations if m.id not in applied]


def _bring_up(conn: Connection, schema: _Schema) -> Report:
    """Apply what is pending. One transaction, unless a migration wants none."""
    done: list[str] = []
    while True:
        pending = _pending(conn, schema)
        together = []
        for migration in pending:
            if not migration.use_transactions:
                break
            together.append(migration)
        last = len(together) == len(pending)

        def step(together: Sequence[Any] = together, last: bool = last) -> Report:
            if together or not last or _changes(conn, schema).any:
                return _deploy(conn, schema, together, last=last)
            return Report()

        report = _in_transaction(conn, step)
        done += report.migrations
        if last:
            return dataclasses.replace(report, migrations=tuple(done))
        _apply_alone(conn, pending[len(together)])
        done.append(pending[len(together)].id)


def _deploy(conn: Connection, schema: _Schema, migrations: Sequence[Any], *, last: bool) -> Report:
    if _one(conn, "select to_regclass('pyjobs_deploy.deployed') is null"):
        conn.execute(_BOOKKEEPING)
    # Left there by a yoyo of its own that was killed; nobody holds it now but in error.
    conn.execute("delete from pyjobs_deploy.yoyo_lock")
    backend = _Backend(conn)
    for migration in migrations:
        backend.apply(migration)
    report = _Deployment(conn, schema).run() if last else Report()
    return dataclasses.replace(report, migrations=tuple(m.id for m in migrations))


def _apply_alone(conn: Connection, migration: Any) -> None:
    """A migration that cannot be in a transaction. It must bear to be run again."""
    backend = _Backend(conn)
    # A session's wait for a lock does not roll back others' work here, and cannot be retried.
    conn.execute("set lock_timeout = 0")
    try:
        backend.apply(migration)
    finally:
        conn.execute("select set_config('lock_timeout', %s, false)", [_SETTINGS["lock_timeout"]])


def _take_down(conn: Connection, schema: _Schema, count: int | None) -> Report:
    applied = _applied(conn)
    known = {m.id: m for m in schema.migrations}
    chosen = [m for m in reversed(schema.migrations) if m.id in applied][:count]
    unknown = [name for name in applied if name not in known]
    if unknown:
        raise MigrationError(
            f"this pyjobs does not know how to undo {', '.join(unknown)}; use the newer version"
        )
    if not chosen:
        return Report()
    dropped = _Deployment(conn, schema).drop_all()
    backend = _Backend(conn)
    for migration in chosen:
        backend.undo(migration)
    if len(chosen) == len(applied):
        conn.execute("drop schema pyjobs_deploy cascade")
    return Report(migrations=tuple(m.id for m in chosen), dropped=tuple(dropped))


# -- functions, by checksum


@dataclasses.dataclass(frozen=True, slots=True)
class _Changes:
    files: tuple[_File, ...]
    removed: tuple[str, ...]
    #: what each file made when it was last deployed
    made: dict[str, list[str]]

    @property
    def any(self) -> bool:
        return bool(self.files or self.removed)


def _changes(conn: Connection, schema: _Schema) -> _Changes:
    """What differs: by text, because an object that a file made is gone, or its grants."""
    sha256: dict[str, str] = {}
    made: dict[str, list[str]] = {}
    if not _one(conn, "select to_regclass('pyjobs_deploy.deployed') is null"):
        for path, digest, objects in conn.execute(
            "select path, sha256, objects from pyjobs_deploy.deployed"
        ):
            sha256[path], made[path] = digest, objects
    there = {row[3] for row in conn.execute(_OBJECTS)}
    ungranted = _one(conn, _PUBLIC_MAY_CALL)
    files = tuple(
        f
        for f in schema.files
        if sha256.get(f.path) != f.sha256
        or not there.issuperset(made[f.path])
        or (ungranted and f.path == _GRANTS)
    )
    removed = sorted(set(made) - {f.path for f in schema.files})
    return _Changes(files, tuple(removed), made)


def _plan(conn: Connection, schema: _Schema) -> Report:
    with conn.transaction():
        pending = _pending(conn, schema)
        changes = _changes(conn, schema)
    files = list(changes.files)
    if changes.removed or files or pending:
        files += [f for f in schema.files if f.path == _GRANTS and f not in files]
    kept = {o for f in schema.files for o in changes.made.get(f.path, ())}
    gone = {o for path in changes.removed for o in changes.made[path]} - kept
    return Report(
        migrations=tuple(m.id for m in pending),
        files=tuple(f.path for f in files),
        removed=changes.removed,
        dropped=tuple(sorted(gone)),
        planned=True,
    )


class _Deployment:
    """One pass over ``sql/``, inside a transaction."""

    def __init__(self, conn: Connection, schema: _Schema) -> None:
        self._conn = conn
        self._schema = schema
        self._changes = _changes(conn, schema)
        # Which file makes an object: what may be dropped, because it can be made again.
        self._maker = {o: path for path, made in self._changes.made.items() for o in made}
        self._queue: list[_File] = []
        self._deployed: dict[str, None] = {}
        self._replaced: set[str] = set()
        self._dropped: dict[str, None] = {}

    def run(self) -> Report:
        """Deploy what changed, drop what is no longer made, run the grants."""
        conn = self._conn
        conn.execute("set local check_function_bodies = off")
        conn.execute("set local search_path = pg_catalog")
        self._queue = [f for f in self._changes.files if f.path != _GRANTS]
        self._drain()
        self._drop_what_is_gone()
        self._drain()
        for file in self._schema.files:
            if file.path == _GRANTS:
                self._grant(file)
        there = {row[3] for row in conn.execute(_OBJECTS)}
        return Report(
            files=tuple(self._deployed),
            removed=self._changes.removed,
            # Not what was dropped only to be made again.
            dropped=tuple(o for o in self._dropped if o not in there),
        )

    def drop_all(self) -> list[str]:
        """Drop everything that was deployed."""
        self._drop(self._maker)
        self._conn.execute("delete from pyjobs_deploy.deployed")
        return sorted(self._dropped)

    def _drain(self) -> None:
        """Deploy the queue, in rounds: each as long as the one before got something done."""
        while self._queue:
            round_, self._queue = self._queue, []
            waiting: list[tuple[_File, psycopg.Error]] = []
            for file in round_:
                try:
                    self._make(file)
                except _MISSING as error:
                    waiting.append((file, error))
            if len(waiting) == len(round_) and not self._queue:
                first, missed = waiting[0]
                raise MigrationError(_explain(missed, f"sql/{first.path}", first.text)) from missed
            self._queue += [file for file, _ in waiting]

    def _make(self, file: _File) -> None:
        try:
            self._execute(file)
        except _UNREPLACEABLE as error:
            # What it, or a file that is gone, made before stands in the way.
            paths = {file.path, *self._changes.removed}
            before = [o for o, path in self._maker.items() if path in paths]
            if not before or file.path in self._replaced:
                raise MigrationError(_explain(error, f"sql/{file.path}", file.text)) from error
            self._replaced.add(file.path)
            self._drop(before)
            self._execute(file)

    def _execute(self, file: _File) -> None:
        conn = self._conn
        try:
            with conn.transaction():
                conn.execute(file.text.encode())
                note = _NOTE_GRANTS if file.path == _GRANTS else _NOTE
                for statement in note.split(";\n")[:-1]:
                    conn.execute(statement, {"path": file.path, "sha256": file.sha256})
        except (*_MISSING, *_UNREPLACEABLE, *_TRANSIENT):
            raise
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise MigrationError(_explain(error, f"sql/{file.path}", file.text)) from error
        self._deployed[file.path] = None

    def _grant(self, file: _File) -> None:
        try:
            try:
                self._execute(file)
            except errors.UndefinedObject:
                # Restored on a server that does not have the roles.
                self._conn.execute(self._schema.roles().encode())
                self._execute(file)
        except (*_MISSING, *_UNREPLACEABLE) as error:
            raise MigrationError(_explain(error, f"sql/{file.path}", file.text)) from error

    def _drop_what_is_gone(self) -> None:
        makes: set[str] = set()
        for path, objects in self._conn.execute("select path, objects from pyjobs_deploy.deployed"):
            if path not in self._changes.removed:
                makes.update(objects)
        self._drop([o for o in self._maker if o not in makes])
        self._conn.execute(
            "delete from pyjobs_deploy.deployed where path = any(%s)",
            [list(self._changes.removed)],
        )

    def _drop(self, objects: Iterable[str]) -> None:
        """Drop them, and first what of ours needs them; its files are deployed again.

        Never by CASCADE: that would take along what an application built upon us.
        """
        there = {row[3]: (row[0], row[1]) for row in self._conn.execute(_OBJECTS)}
        chosen = set(objects)
        gone: set[str] = set()

        def drop(name: str, place: tuple[int, int]) -> None:
            if name in gone:
                return
            gone.add(name)
            needed_by = self._conn.execute(
                _DEPENDENTS, {"class": place[0], "oid": place[1]}
            ).fetchall()
            for class_, oid, other in needed_by:
                if other not in self._maker and other not in chosen:
                    raise MigrationError(
                        f"{name} has to be dropped or made anew, but {other} needs it and is not"
                        " part of pyjobs. Drop that, migrate, and make it again."
                    )
                drop(other, (class_, oid))
            self._conn.execute(f"drop {name}".encode())
            self._dropped[name] = None

        for name in sorted(chosen):
            if name in there:
                drop(name, there[name])
        for name in gone - chosen:
            self._queue_maker(name)

    def _queue_maker(self, name: str) -> None:
        path = self._maker[name]
        for file in self._schema.files:
            if file.path == path and file not in self._queue:
                self._queue.append(file)
