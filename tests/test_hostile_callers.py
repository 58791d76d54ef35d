"""Callers who mean harm: each role tries what it may not, and lays traps in its own session.

What a role may do stands in test_roles.py; here everything else is tried, on the server itself.
"""

from __future__ import annotations

import contextlib
import re
from string import Template
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors, sql

from tests.support.calls import Calls
from tests.support.cluster import ROLES
from tests.test_fuzz import Population
from tests.test_roles import MAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import Database

    Connection = psycopg.Connection[Any]

# What a hostile name, reason, error or item holds: SQL, formats, line ends, escapes of terminals
# (also those of one character, and those that turn the direction of writing), and more.
EVIL = "'; drop schema pyjobs; --\n\r\t\x1b[2J\x1b]0;x\x07\x9b31m\x7f\u202e\u2028%s%n$1{}\"\\"


# What is granted to others than the owner: kind, to whom, what, whether to hand on, on how many.
GRANTED = """
with a as (
    select 'function' as kind, p.pronamespace as schema, p.oid::regprocedure::text as name,
        coalesce(p.proacl, acldefault('f', p.proowner)) as acl, p.proowner as owner
    from pg_proc p
    union all
    select case c.relkind when 'S' then 'sequence' else 'relation' end, c.relnamespace,
        c.oid::regclass::text,
        coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char",
            c.relowner)), c.relowner
    from pg_class c where c.relkind in ('r', 'v', 'S', 'm', 'p', 'f')
    union all
    select 'column', c.relnamespace, c.oid::regclass || '.' || t.attname, t.attacl, c.relowner
    from pg_attribute t join pg_class c on c.oid = t.attrelid
    union all
    select 'schema', n.oid, n.nspname, coalesce(n.nspacl, acldefault('n', n.nspowner)),
        n.nspowner
    from pg_namespace n
)
select a.kind, e.grantee::regrole::text, e.privilege_type, e.is_grantable, count(*)
from a cross join aclexplode(a.acl) e
where a.schema::regnamespace::text like 'pyjobs%' and e.grantee <> a.owner
group by 1, 2, 3, 4 order by 1, 2, 3
"""


def refused(conn: Connection, statement: str) -> None:
    """It is turned away for want of a right, and not because there is no such thing."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(statement.encode())
    except (errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState):
        return
    except psycopg.Error as error:
        pytest.fail(f"{statement}: {error!r}")
    pytest.fail(f"{statement}: it was done")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_call_no_function_but_its_own(
    db: Connection, as_role: Callable[..., Connection], role: str
) -> None:
    """Every function of all schemas, with the arguments that are most likely to be taken."""
    functions = db.execute(
        "select n.nspname, p.proname,"
        " (select string_agg('null::' || format_type(t.oid, null), ', ' order by t.n)"
        "  from unnest(p.proargtypes) with ordinality t (oid, n))"
        " from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname like 'pyjobs%' and p.prorettype <> 'trigger'::regtype"
    ).fetchall()
    forbidden = [f for f in functions if f[0] != "pyjobs" or f[1] not in MAY[role]]
    assert len(forbidden) > 60
    conn = as_role(role)
    for schema, name, arguments in forbidden:
        refused(conn, f"select {schema}.{name}({arguments or ''})")


ON_TABLES = (
    "select * from {0}",
    "select 1 from {0}",
    "table {0}",
    "insert into {0} default values",
    "delete from {0}",
    "truncate {0}",
    "lock table {0} in access share mode",
    "copy {0} to stdout",
    "copy {0} from stdin",
    "drop table {0}",
    "alter table {0} disable trigger all",
    "alter table {0} enable row level security",
    "alter table {0} rename to mine",
    "alter table {0} owner to current_user",
    "create index on {0} ((1))",
    "create policy mine on {0} using (true)",
    "create rule mine as on update to {0} do instead nothing",
    "comment on table {0} is 'mine'",
)
ON_VIEWS = (
    "insert into {0} default values",
    "delete from {0}",
    "drop view {0}",
    "alter view {0} rename to mine",
    "create rule mine as on update to {0} do instead nothing",
    "create or replace view {0} as select 1",
)
ON_SEQUENCES = (
    "select nextval('{0}')",
    "select setval('{0}', 1)",
    "select * from {0}",
    "alter sequence {0} restart",
    "drop sequence {0}",
)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_do_nothing_to_what_holds_the_rows(
    db: Connection, as_role: Callable[..., Connection], role: str
) -> None:
    """Every table, view and sequence, by every way; afterwards all is as it was."""
    people = Population(db)
    granted = db.execute(GRANTED.encode()).fetchall()
    conn = as_role(role)
    # A table of its own, to be the other end of a foreign key, and a function to be a trigger's.
    conn.execute("create temporary table mine (id bigint)")
    conn.execute(
        "create function pg_temp.fire() returns trigger language plpgsql as"
        " $$ begin return null; end $$"
    )
    relations = db.execute(
        "select c.relkind::text, format('%I.%I', n.nspname, c.relname) from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname like 'pyjobs%' and c.relkind in ('r', 'v', 'S')"
    ).fetchall()
    assert {kind for kind, _ in relations} == {"r", "v", "S"}
    for kind, name in relations:
        for statement in {"r": ON_TABLES, "v": ON_VIEWS, "S": ON_SEQUENCES}[kind]:
            refused(conn, statement.format(name))
        if kind != "S":
            refused(
                conn, f"create trigger t after delete on {name} execute function pg_temp.fire()"
            )
    for column in ("status", "params", "run"):
        refused(conn, f"update pyjobs_internal.job set {column} = {column}")
        refused(conn, f"select {column} from pyjobs_internal.job")
    for schema in ("pyjobs", "pyjobs_internal", "pyjobs_deploy"):
        refused(conn, f"create table {schema}.mine (id int)")
        refused(conn, f"create view {schema}.mine as select 1")
        refused(conn, f"create type {schema}.mine as (id int)")
        refused(conn, f"create function {schema}.mine() returns int language sql as 'select 1'")
        refused(
            conn,
            f"create operator {schema}.= (leftarg = bigint, rightarg = bigint, function = int8eq)",
        )
        refused(conn, f"drop schema {schema} cascade")
        refused(conn, f"comment on schema {schema} is 'mine'")
    # Who has some right, but not to hand it on, is only warned.
    for kind, name in relations:
        with contextlib.suppress(errors.InsufficientPrivilege):
            conn.execute(
                f"grant all on {'sequence' if kind == 'S' else 'table'} {name} to public".encode()
            )
    for schema in ("pyjobs", "pyjobs_internal", "pyjobs_deploy"):
        with contextlib.suppress(errors.InsufficientPrivilege):
            conn.execute(f"grant all on schema {schema} to public".encode())
        with contextlib.suppress(errors.InsufficientPrivilege):
            conn.execute(f"grant all on all functions in schema {schema} to public".encode())
    assert db.execute(GRANTED.encode()).fetchall() == granted
    assert people.look() == people.at_rest


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_become_nobody_else(
    db: Connection, cluster: Any, as_role: Callable[..., Connection], role: str
) -> None:
    """Neither the owner, nor a superuser, nor a sibling; and it changes no function or type."""
    conn = as_role(role)
    others = [cluster.owner, cluster.user, *(f"pyjobs_{other}" for other in ROLES if other != role)]
    for other in others:
        refused(conn, f'set role "{other}"')
        refused(conn, f'set session authorization "{other}"')
        refused(conn, f'grant "{other}" to current_user')
        refused(conn, f'alter role "{other}" nologin')
        refused(conn, f'drop role "{other}"')
        refused(conn, f'reassign owned by "{other}" to current_user')
    refused(conn, "create role mine")
    refused(conn, "alter role current_user superuser")
    refused(conn, "create event trigger mine on ddl_command_end execute function f()")
    refused(conn, "create cast (text as pyjobs.job_status) with inout as implicit")
    refused(conn, "create cast (bigint as pyjobs.job_status) without function as implicit")
    refused(conn, "alter type pyjobs.job_status add value 'MINE'")
    refused(conn, "drop type pyjobs.job_status cascade")
    refused(conn, "alter function pyjobs.job_progress(bigint) reset search_path")
    refused(conn, "alter function pyjobs.job_progress(bigint) security invoker")
    refused(conn, "drop function pyjobs.job_progress(bigint)")
    refused(conn, "set session_replication_role = replica")
    refused(conn, "copy (select 1) to program 'true'")
    # As a member of the group itself, which has no more than its member.
    conn.execute(f"set role pyjobs_{role}")
    refused(conn, "select * from pyjobs_internal.job")
    refused(conn, "create function pyjobs.mine() returns int language sql as 'select 1'")


def test_a_temporary_schema_cannot_be_made_by_a_function_of_ours(
    as_role: Callable[..., Connection],
) -> None:
    """A view of one's own over the relations shows what the relations show, as oneself."""
    reader = as_role("reader")
    reader.execute(
        "create function pg_temp.spy(anyelement) returns boolean cost 0.0001 language plpgsql as"
        " $$ begin raise 'spied as %', current_user; end $$"
    )
    Calls(as_role("producer")).enqueue("q", [1])
    for relation in ("job", "batch"):
        with pytest.raises(errors.RaiseException, match=f"spied as {reader.info.user}"):
            reader.execute(f"select * from pyjobs.{relation} r where pg_temp.spy(r.id)".encode())


def life(
    producer: Connection, worker: Connection, operator: Connection, reader: Connection
) -> None:
    """Every function once, on jobs for which it has something to do. No operator, no cast of ours
    besides: the callers' own statements would fall into their own traps."""
    asked = (
        (
            producer,
            "enqueue_job('q', '[1, 2]', dedupe_key => 'k', stages => '{a,b}', barriers => '{b}')",
        ),
        (producer, "enqueue_jobs('q', '[1, 2, 3, 4, 5, 6, 7, 8, 9]')"),
        (producer, "enqueue_job('q2', '[1]', seal => false, hold => true)"),
        (producer, "add_items($job, '[2]')"),
        (producer, "release_job($job)"),
        (producer, "seal_job($job)"),
        (worker, "claim_next_batch($job, 'w', 2)"),
        (worker, "extend_lease($batch, $epoch, '1 minute')"),
        (worker, "release_batch($batch, $epoch, 'no', '1 second')"),
        (worker, "report_refused($batch, $epoch, 'PJ001', 'late')"),
        (operator, "pause_job($job)"),
        (operator, "resume_job($job)"),
        (operator, "set_priority($job, 3)"),
        (operator, "quarantine_job($job, 'odd')"),
        (operator, "resolve_job($job, 'RETRY', 'fine')"),
        (operator, "cancel_job($job, 'enough')"),
        (operator, "retry_job($job, true)"),
        (operator, "finalize_job($job, 'FAILURE', 'enough')"),
        (operator, "pause_queue('q2')"),
        (operator, "resume_queue('q2')"),
        (worker, "claim_next_job('w', '{q}', 2)"),
        (worker, 'record_and_claim($batch, $epoch, \'w\', \'[{"index": 0, "error": "e"}]\')'),
        (worker, "claim_jobs('w', '{q}', 1, '1 minute')"),
        (worker, "record_batch($batch, $epoch, counters => '{\"n\": 3}')"),
        (worker, "claim_jobs('w', '{q}', 1, '1 minute')"),
        (worker, "record_batches('{$batch}', '{$epoch}', '[[]]', '[{\"n\": 1}]')"),
        (worker, "claim_jobs('w', '{q}', 1, '1 microsecond')"),
        (worker, "reap_leases()"),
        (operator, "reap('0')"),
        (reader, "job_progress($job)"),
        (reader, "explain_job($job)"),
        (reader, "job_history($job)"),
        (reader, "audit_job()"),
        (reader, "queue_stats()"),
        (reader, "active_workers()"),
        (operator, "purge_jobs('0')"),
    )
    said: dict[str, Any] = {}
    refusals: list[str] = []
    for conn, call in asked:
        try:
            cursor = conn.execute(
                Template(f"select * from pyjobs.{call}").substitute(said).encode()
            )
        except (errors.Error, psycopg.Error) as error:
            if not (error.sqlstate or "").startswith("PJ00"):
                raise
            refusals.append(call)
            continue
        row = cursor.fetchone()
        names = [column.name for column in cursor.description or ()]
        if names == ["enqueue_job"] and row:
            said["job"] = row[0]
        elif (
            "batch_id" in names and row and "lease_epoch" in names and row[names.index("batch_id")]
        ):
            said["batch"] = row[names.index("batch_id")]
            said["epoch"] = row[names.index("lease_epoch")]
    assert refusals == []
    called = {call.partition("(")[0] for _, call in asked}
    assert called == {name for functions in MAY.values() for name in functions}


TYPES = ("bigint", "integer", "text", "jsonb", "boolean", "numeric", "interval", "timestamptz")


def lay_traps(conn: Connection, schema: str) -> int:
    """Look-alikes of every function and operator that our functions' sources name. How many."""
    sources = " ".join(
        source
        for (source,) in conn.execute(
            "select prosrc from pg_proc where pronamespace::regnamespace::text like 'pyjobs%'"
        )
    )
    words = sorted(set(re.findall(r"[a-z_0-9]{2,}(?=\s*\()", sources)))
    functions = conn.execute(
        "select distinct p.proname, oidvectortypes(p.proargtypes), p.prorettype::regtype::text,"
        " p.proretset from pg_proc p"
        " where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any (%s)"
        " and p.proallargtypes is null"
        " and p.prokind = 'f' and p.pronargs > 0"
        " and not exists (select from unnest(p.proargtypes) a where a in ('internal'::regtype,"
        " '\"any\"'::regtype, 'cstring'::regtype, 'anyelement'::regtype, 'anyarray'::regtype))"
        " and p.prorettype not in ('internal'::regtype, 'cstring'::regtype, 'anyelement'::regtype,"
        " 'anyarray'::regtype, 'record'::regtype, 'trigger'::regtype)"
        " and not exists (select from unnest(p.proargtypes) a join pg_type t on t.oid = a"
        " where t.typtype = 'p')",
        [words],
    ).fetchall()
    laid = 0
    for name, arguments, result, many in functions:
        conn.execute(
            sql.SQL(
                "create or replace function {}.{}({}) returns {} {} language plpgsql as"
                " $$ begin raise 'trapped'; end $$"
            ).format(
                sql.Identifier(schema),
                sql.Identifier(name),
                sql.SQL(arguments),
                sql.SQL("setof" if many else ""),
                sql.SQL(result),
            )
        )
        laid += 1
    operators = conn.execute(
        "select distinct oprname, oprleft::regtype::text, oprright::regtype::text,"
        " oprresult::regtype::text from pg_operator where oprnamespace = 'pg_catalog'::regnamespace"
        " and oprkind = 'b' and oprleft = any (%(types)s::regtype[])"
        " and oprright = any (%(types)s::regtype[]) and position(oprname in %(sources)s) > 0",
        {"types": list(TYPES), "sources": sources},
    ).fetchall()
    for number, (name, left, right, result) in enumerate(operators):
        conn.execute(
            f"create function {schema}.trap_{number}({left}, {right}) returns {result}"
            " language plpgsql as $$ begin raise 'trapped'; end $$".encode()
        )
        conn.execute(
            f"create operator {schema}.{name} (leftarg = {left}, rightarg = {right},"
            f" function = {schema}.trap_{number})".encode()
        )
        laid += 1
    for name in ("job_status", "claimed_batch", "reaped", "bigint", "jsonb", "text", "int"):
        conn.execute(f'create type {schema}."{name}" as (trapped text)'.encode())
        laid += 1
    for (name,) in conn.execute(
        "select tablename from pg_tables where schemaname = 'pyjobs_internal'"
    ).fetchall():
        conn.execute(f'create table {schema}."{name}" (trapped int)'.encode())
        laid += 1
    # The owner's own names, where an unqualified call of ours would find them.
    for (signature,) in conn.execute(
        "select format('%I(%s)', p.proname, oidvectortypes(p.proargtypes))"
        " from pg_proc p where p.pronamespace = 'pyjobs_internal'::regnamespace"
        " and p.prorettype <> 'trigger'::regtype"
    ).fetchall():
        conn.execute(
            f"create function {schema}.{signature} returns void language plpgsql as"
            " $$ begin raise 'trapped'; end $$".encode()
        )
        laid += 1
    return laid


@pytest.mark.parametrize("schema", ["trap", "public"])
def test_no_look_alike_in_the_callers_path_is_ever_called(
    admin: Connection, db: Connection, connect: Callable[..., Connection], schema: str
) -> None:
    """Functions, operators, types and tables in a schema in front; temporary ones besides."""
    admin.execute("create schema if not exists trap")
    assert lay_traps(admin, schema) > 200
    admin.execute(f"grant usage on schema {schema} to public".encode())
    sessions = [connect(role) for role in ("producer", "worker", "operator", "reader")]
    for conn in sessions:
        for (name,) in db.execute(
            "select tablename from pg_tables where schemaname = 'pyjobs_internal'"
        ).fetchall():
            conn.execute(f'create temporary table "{name}" (trapped int)'.encode())
        conn.execute("create type pg_temp.job_status as (trapped int)")
        conn.execute(
            "create function pg_temp.clock() returns timestamptz language plpgsql as"
            " $$ begin raise 'trapped'; end $$"
        )
        conn.execute(f"set search_path = {schema}, pg_temp, pg_catalog, pyjobs".encode())
    life(*sessions)
    assert db.execute("select count(*) > 0 from pyjobs_internal.worker").fetchone() == (True,)

    # The traps are real: whoever does not pin the path falls into one.
    db.execute("alter function pyjobs.explain_job(bigint) reset search_path")
    Calls(db).enqueue("q", [1])
    with pytest.raises(errors.RaiseException, match="trapped"):
        sessions[3].execute("select * from pyjobs.explain_job((select max(id) from pyjobs.job))")


def test_a_lease_that_was_guessed_is_taken(as_role: Callable[..., Connection]) -> None:
    """A lease is not authentication, as the documents say: the epoch alone decides."""
    Calls(as_role("producer")).enqueue("q", [1])
    (batch,) = Calls(as_role("worker")).ask("w", "q")
    assert Calls(as_role("worker")).record(batch)["job_status"] == "SUCCESS"


def test_hostile_texts_are_kept_as_they_are(db: Connection) -> None:
    """Nothing in them is taken for SQL, or for a format."""
    calls = Calls(db)
    job = calls.enqueue(
        EVIL, [EVIL], params={EVIL: EVIL}, name=EVIL, dedupe_key=EVIL, stages=[EVIL], max_attempts=1
    )
    (batch,) = calls.ask(EVIL, EVIL)
    assert (batch["queue"], batch["stage"], batch["items"]) == (EVIL, EVIL, [EVIL])
    calls.value("select pyjobs.quarantine_job(%s, %s)", job, EVIL)
    calls.value("select pyjobs.resolve_job(%s, 'FAILURE', %s)", job, EVIL)
    history = calls.history(job)
    assert [row["reason"] for row in history][-2:] == [EVIL, EVIL]
    assert (history[1]["to_status"], history[1]["by"]) == ("STARTED", EVIL)
    assert calls.value("select pyjobs.retry_job(%s)", job) == "RETRY"
    calls.value("select pyjobs.pause_queue(%s)", EVIL)
    # The remedy that it is told is one statement, and does what it says.
    (remedy,) = (r["remedy"] for r in calls.explain(job) if r["finding"] == "queue paused")
    calls.do(remedy.replace("%", "%%"))
    assert "queue paused" not in calls.findings(job)
    (batch,) = calls.ask(EVIL, EVIL)
    calls.do(
        "select pyjobs.release_batch(%s, %s, %s)", batch["batch_id"], batch["lease_epoch"], EVIL
    )
    (told,) = calls.progress(job)["errors"]
    assert told == {"stage": EVIL, "item": EVIL, "error": EVIL}
    with pytest.raises(psycopg.Error) as error:
        calls.do("select pyjobs.add_items(%s, '[]', %s)", job, EVIL)
    assert error.value.sqlstate == "PJ006"


def test_what_the_public_and_the_roles_may_is_nothing_but_what_is_granted(db: Connection) -> None:
    """Over every catalogue that has an ACL. Types are open to all, as PostgreSQL makes them, but
    nobody can name one in a schema that he may not use."""
    granted = db.execute(GRANTED.encode()).fetchall()
    readers = {"pyjobs_operator", "pyjobs_reader"}
    assert [row for row in granted if row[0] != "function"] == [
        *(("relation", role, "SELECT", False, 3) for role in sorted(readers)),
        *(("schema", f"pyjobs_{role}", "USAGE", False, 1) for role in sorted(ROLES)),
    ]
    assert [row for row in granted if row[0] == "function"] == [
        ("function", f"pyjobs_{role}", "EXECUTE", False, len(MAY[role])) for role in sorted(ROLES)
    ]
    # Types are the one thing that is left to PUBLIC.
    assert db.execute(
        "select count(*) from pg_type t, aclexplode(t.typacl) e"
        " where t.typnamespace::regnamespace::text like 'pyjobs%' and e.grantee <> t.typowner"
    ).fetchone() == (0,)


def test_everything_belongs_to_the_one_who_migrated_and_he_is_nobody_special(
    db: Connection, cluster: Any
) -> None:
    """Every object of the schemas, by the server's own list of who owns what."""
    owners = db.execute(
        "select r.rolname::text, r.rolsuper or r.rolcreaterole or r.rolbypassrls, count(*)"
        " from pg_shdepend d join pg_roles r on r.oid = d.refobjid"
        " where d.deptype = 'o' and d.dbid = (select oid from pg_database"
        " where datname = current_database()) and d.classid::regclass::text <> 'pg_database'"
        " group by 1, 2"
    ).fetchall()
    assert [(name, special) for name, special, _ in owners] == [(cluster.owner, False)]
    assert owners[0][2] > 100
    other = db.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname like 'pyjobs%%' and c.relowner <> %s::regrole",
        [cluster.owner],
    ).fetchall()
    assert other == []


def test_no_function_runs_a_text_as_sql_or_is_open_to_a_path(db: Connection) -> None:
    """No EXECUTE; the definer's functions all pin the path, the others are out of reach."""
    functions = db.execute(
        "select p.oid::regprocedure::text, n.nspname, p.prosecdef, p.prosrc, p.proconfig,"
        " l.lanname from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " join pg_language l on l.oid = p.prolang where n.nspname like 'pyjobs%'"
    ).fetchall()
    assert len(functions) > 70
    for name, schema, definer, source, config, language in functions:
        assert language in {"plpgsql", "sql"}, name
        code = re.sub(r"--[^\n]*", "", source)
        assert not re.search(r"\bexecute\b", code, re.IGNORECASE), name
        assert not re.search(r"\b(dblink|query_to_xml|table_to_xml|cursor_to_xml)", code), name
        assert definer == (schema == "pyjobs"), name
        if definer:
            assert (config or [])[0] == "search_path=pg_catalog, pg_temp", name


def test_default_privileges_of_the_owner_open_nothing(
    admin: Connection, database: Database, cluster: Any
) -> None:
    """Whoever migrates may have said that all that he makes is for everybody."""
    from pyjobs import migrate

    for kind in ("functions", "tables", "sequences", "schemas"):
        admin.execute(
            f'alter default privileges for role "{cluster.owner}"'
            f" grant all on {kind} to public".encode()
        )
    admin.execute("drop schema pyjobs, pyjobs_internal, pyjobs_deploy cascade")
    migrate.migrate(database.dsn)
    opened = admin.execute(
        "select 'function', p.oid::regprocedure::text from pg_proc p,"
        " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) e"
        " where p.pronamespace::regnamespace::text like 'pyjobs%' and e.grantee = 0"
        " union all select 'relation', c.oid::regclass::text"
        " from pg_class c, aclexplode(c.relacl) e"
        " where c.relnamespace::regnamespace::text like 'pyjobs%' and e.grantee = 0"
        " and c.relkind <> 'i'"
        " union all select 'schema', n.nspname from pg_namespace n, aclexplode(n.nspacl) e"
        " where n.nspname like 'pyjobs%' and e.grantee = 0"
    ).fetchall()
    assert opened == []


def test_a_batch_that_no_answer_could_hold_is_refused(db: Connection) -> None:
    """A number of ten bytes in a row is 131,072 in the answer to a claim: some 10,000 of them made
    every claim of the queue fail, and the job stood first again."""
    calls = Calls(db)
    calls.do(
        "create temporary table t as select jsonb_agg(1e131071) as x from generate_series(1, 3200)"
    )
    wide = "(select x from t)"
    job = calls.enqueue("q", [1], stages=["a", "b"], seal=False)
    (batch,) = calls.claim(job)
    for call, argument in (
        (f"enqueue_job('q', {wide}, batch_size => 10000)", "items"),
        (f"enqueue_job('q', params => {wide})", "params"),
        (f"enqueue_jobs('q', {wide})", "params"),
        (f"add_items({job}, {wide})", "items"),
        (
            f"record_batch({batch['batch_id']}, {batch['lease_epoch']}, next_items => {wide})",
            "next_items",
        ),
    ):
        with pytest.raises(psycopg.Error, match=f"argument {argument} must be JSON whose") as error:
            db.execute(f"select pyjobs.{call}".encode())
        assert error.value.sqlstate == "PJ005"
    # What is only large is taken, and handed on.
    calls.do(
        "select pyjobs.enqueue_job('large', to_jsonb(array_fill('x'::text, array[100000])),"
        " batch_size => 100000)"
    )
    (batch,) = calls.ask("w", "large")
    assert len(batch["items"]) == 100_000


def test_the_progress_document_stays_small_whatever_failed(db: Connection) -> None:
    """Ten items of 30 MB that failed were more than a jsonb can hold: nobody saw the progress."""
    calls = Calls(db)
    job = calls.value(
        "select pyjobs.enqueue_job('q', (select jsonb_agg(repeat('x', 1000000)) from"
        " generate_series(1, 3)) || '[1e131071]' || jsonb_build_array((repeat('[', 3000)"
        " || repeat(']', 3000))::jsonb) || '[{\"small\": 1}]', max_attempts => 1)"
    )
    for batch in calls.rows(
        "select batch_id, lease_epoch from pyjobs.claim_next_batch(%s, 'w', 10)", job
    ):
        calls.do("select pyjobs.release_batch(%s, %s, 'no')", *batch.values())
    errors_told = calls.progress(job)["errors"]
    assert [str(e["item"])[:20] for e in errors_told] == [
        *["a JSON string of 100"] * 3,
        "1" + "0" * 19,
        "a JSON array of 2400",
        "{'small': 1}",
    ]
    assert errors_told[-1]["item"] == {"small": 1}
