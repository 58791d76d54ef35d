"""Deployment: complete, repeatable, exclusive, and the same however it was interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pyjobs import embedded, migrate
from tests.support.schemas import MIGRATIONS, Tree, dump
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def make_database(cluster):
    """Make empty databases, owned by a role that is no superuser; returns connection strings."""
    made = []
    with psycopg.connect(cluster.dsn(), autocommit=True) as server:

        def make() -> str:
            name = f"pj_{cluster.token}_e{os.getpid()}_{len(made)}"
            made.append(name)
            server.execute(
                sql.SQL("create database {} owner {}").format(
                    sql.Identifier(name), sql.Identifier(cluster.owner)
                )
            )
            return cluster.dsn(name, cluster.owner)

        yield make
        for name in made:
            server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def empty(make_database):
    return make_database()


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "tree")


def query(dsn, text, *parameters):
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(text, parameters or None)
        return cursor.fetchall() if cursor.description else []


def functions(dsn):
    rows = query(
        dsn,
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace::regnamespace::text in ('pyjobs', 'pyjobs_internal') order by 1",
    )
    return [row[0] for row in rows]


# -- the schema of this project


def test_an_empty_database_is_migrated_by_an_owner_who_is_no_superuser(empty):
    report = migrate.migrate(empty)
    assert len(report.migrations) == len(
        [p for p in (ROOT / "migrations").glob("*.sql") if not p.name.endswith(".rollback.sql")]
    )
    assert report.files[-1] == "grants.sql"
    assert report.changed
    assert not report.planned
    assert query(empty, "select current_setting('is_superuser')") == [("off",)]


def test_a_second_migration_finds_nothing_to_do(empty):
    migrate.migrate(empty)
    before = dump(empty, data=True)
    assert migrate.migrate(empty) == migrate.Report()
    assert dump(empty, data=True) == before


def test_the_script_for_psql_makes_the_same_and_migrate_goes_on_from_there(
    make_database, cluster, tmp_path
):
    by_migrate, by_psql = make_database(), make_database()
    migrate.migrate(by_migrate)
    script = tmp_path / "schema.sql"
    script.write_text(migrate.schema_sql())
    command = [cluster.psql_path, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, by_psql]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert dump(by_psql) == dump(by_migrate)
    objects = "select path, sha256, objects from pyjobs_deploy.deployed order by path"
    assert query(by_psql, objects) == query(by_migrate, objects)
    assert migrate.migrate(by_psql) == migrate.Report()

    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode != 0
    assert "pyjobs migrate" in again.stderr


@pytest.mark.parametrize(
    "have",
    range(len([p for p in (ROOT / "migrations").glob("*.sql") if "rollback" not in p.name])),
)
def test_a_schema_upgraded_from_an_earlier_one_dumps_like_a_fresh_one(
    make_database, tmp_path, have
):
    fresh, upgraded = make_database(), make_database()
    migrate.migrate(fresh)
    names = sorted(p.stem for p in (ROOT / "migrations").glob("*.sql") if "rollback" not in p.name)
    early = tmp_path / "early"
    (early / "sql").mkdir(parents=True)
    (early / "migrations").mkdir()
    for name in names[:have]:
        shutil.copy(ROOT / "migrations" / f"{name}.sql", early / "migrations")
    migrate.migrate(upgraded, root=early)
    assert list(migrate.migrate(upgraded).migrations) == names[have:]
    assert dump(upgraded) == dump(fresh)


def test_migrations_and_functions_bear_to_be_run_again(make_database):
    once, twice = make_database(), make_database()
    migrate.migrate(once)
    migrate.migrate(twice)
    query(twice, "delete from pyjobs_deploy._yoyo_migration")
    query(twice, "delete from pyjobs_deploy.deployed")
    assert migrate.migrate(twice).migrations
    assert dump(twice) == dump(once)


def test_rolling_all_back_leaves_what_was_there_before(empty):
    query(empty, "create schema app create table thing (id int)")
    before = dump(empty)
    migrate.migrate(empty)
    report = migrate.rollback(empty, count=None)
    assert len(report.migrations) >= 4
    assert dump(empty) == before
    migrate.migrate(empty)


def test_every_migration_can_be_rolled_back_and_applied_again(make_database):
    fresh, turned = make_database(), make_database()
    migrate.migrate(fresh)
    names = list(migrate.migrate(turned).migrations)
    for count in range(1, len(names) + 1):
        assert list(migrate.rollback(turned, count=count).migrations) == names[::-1][:count]
        assert list(migrate.migrate(turned).migrations) == names[-count:]
    assert dump(turned) == dump(fresh)


def test_the_public_may_call_nothing(empty):
    migrate.migrate(empty)
    rows = query(
        empty,
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace::regnamespace::text in ('pyjobs', 'pyjobs_internal')"
        " and has_function_privilege('public', oid, 'execute')",
    )
    assert rows == []


# -- roles


@pytest.fixture(scope="module")
def bare():
    """A server that knows no roles of ours."""
    with embedded.server(settings=embedded.THROWAWAY) as server:
        yield server


@pytest.fixture
def roleless(bare):
    with psycopg.connect(bare.url(), autocommit=True) as conn:
        conn.execute("create role plain login")
        conn.execute("create role maker login createrole")
        conn.execute("create database of_plain owner plain")
        conn.execute("create database of_maker owner maker")
        yield conn
        conn.execute("drop database of_plain")
        conn.execute("drop database of_maker")
        for role in ("producer", "worker", "operator", "reader"):
            conn.execute(f"drop role if exists pyjobs_{role}")
        conn.execute("drop role plain")
        conn.execute("drop role maker")


def test_an_owner_who_may_not_make_roles_is_told_the_command(bare, roleless):
    dsn = bare.url("of_plain", "plain")
    with pytest.raises(migrate.MigrationError, match="pyjobs sql --roles"):
        migrate.migrate(dsn)
    assert query(dsn, "select nspname from pg_namespace where nspname like 'pyjobs%'") == []

    subprocess.run(
        [bare.psql_path, "-X", "-q", "-v", "ON_ERROR_STOP=1", bare.url()],
        input=migrate.roles_sql(),
        text=True,
        check=True,
        capture_output=True,
    )
    assert migrate.migrate(dsn).changed


def test_an_owner_who_may_make_roles_needs_nobody(bare, roleless):
    assert migrate.migrate(bare.url("of_maker", "maker")).changed
    made = query(
        bare.url(), "select rolname from pg_roles where rolname like 'pyjobs%' and not rolcanlogin"
    )
    assert len(made) == 4


def test_databases_of_one_server_may_be_migrated_at_once(bare, roleless, background):
    roleless.execute("alter role plain createrole")
    both = [
        background(migrate.migrate, bare.url("of_plain", "plain")),
        background(migrate.migrate, bare.url("of_maker", "maker")),
    ]
    assert all(call.result(60).changed for call in both)


def test_the_grants_are_put_right_after_a_restore_without_privileges(empty):
    """Such as by pg_restore --no-privileges: the public may then call what it may not."""
    migrate.migrate(empty)
    before = dump(empty)
    for granted in (
        "grant execute on function pyjobs.cancel_job to public",
        "grant execute on all functions in schema pyjobs_internal to public",
    ):
        query(empty, granted)
        assert migrate.migrate(empty, plan=True).files == ("grants.sql",)
        assert migrate.migrate(empty).files == ("grants.sql",)
        assert dump(empty) == before
    assert migrate.migrate(empty) == migrate.Report()


def test_roles_that_a_restored_database_misses_are_made_or_asked_for(bare, roleless):
    migrate.migrate(bare.url("of_maker", "maker"))
    migrate.migrate(bare.url("of_plain", "plain"))
    for database in ("of_maker", "of_plain"):
        for text in (
            "drop owned by pyjobs_producer, pyjobs_worker, pyjobs_operator, pyjobs_reader",
            "grant execute on function pyjobs.cancel_job to public",
        ):
            query(bare.url(database), text)
    for role in ("producer", "worker", "operator", "reader"):
        roleless.execute(f"drop role pyjobs_{role}")
    with pytest.raises(migrate.MigrationError, match="pyjobs sql --roles"):
        migrate.migrate(bare.url("of_plain", "plain"))
    assert migrate.migrate(bare.url("of_maker", "maker")).files == ("grants.sql",)
    assert migrate.migrate(bare.url("of_plain", "plain")).files == ("grants.sql",)


# -- one at a time


def test_of_eight_at_once_one_works_and_the_others_find_nothing(empty, tree, background):
    calls = [background(migrate.migrate, empty, root=tree.root) for _ in range(8)]
    reports = [call.result(60) for call in calls]
    assert sorted(report.changed for report in reports) == [False] * 7 + [True]
    assert len(query(empty, "select 1 from pyjobs_deploy._yoyo_migration")) == len(MIGRATIONS)
    assert len(query(empty, "select 1 from pyjobs_deploy._yoyo_log")) == len(MIGRATIONS)


def test_one_that_does_not_want_to_wait_says_who_is_at_it(empty, tree):
    with psycopg.connect(empty, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s)", [migrate._LOCK_KEY])
        with pytest.raises(migrate.MigrationError, match=str(other.info.backend_pid)):
            migrate.migrate(empty, root=tree.root, wait=0)


def test_a_lock_that_a_killed_yoyo_left_behind_is_broken(empty, tree):
    migrate.migrate(empty, root=tree.root)
    query(empty, "insert into pyjobs_deploy.yoyo_lock values (1, now(), 4711)")
    tree.migration("0003.more", "create table if not exists pyjobs_internal.more (id int);\n")
    assert migrate.migrate(empty, root=tree.root).migrations == ("0003.more",)


def test_waiting_for_a_lock_is_given_up_and_tried_again(empty, tree, background, monkeypatch):
    monkeypatch.setitem(migrate._SETTINGS, "lock_timeout", "100ms")
    migrate.migrate(empty, root=tree.root)
    tree.migration(
        "0003.more", "alter table pyjobs_internal.thing add column if not exists size int;\n"
    )
    with psycopg.connect(empty) as reader:
        reader.execute("select from pyjobs_internal.thing")
        tried = []
        monkeypatch.setattr(migrate.log, "info", lambda *said: tried.append(said))
        call = background(migrate.migrate, empty, root=tree.root)
        wait_until(lambda: any("again" in said[0] for said in tried), "it tries again")
        assert not call.done()
    assert call.result(60).migrations == ("0003.more",)


# -- killed


KILLED_IN = {
    "the first migration": "migrations/0001.schema.sql",
    "the second migration": "migrations/0002.colour.sql",
    "the data": "sql/data/things.sql",
    "a function's file": "sql/internal/double.sql",
    "the grants": "sql/grants.sql",
}


@pytest.mark.parametrize("place", KILLED_IN)
def test_killed_at_any_point_and_run_again_the_end_is_the_same(
    make_database, tree, place, background
):
    whole, killed = make_database(), make_database()
    migrate.migrate(whole, root=tree.root)
    interrupted = tree.root / KILLED_IN[place]
    text = interrupted.read_text()
    interrupted.write_text(text + "\nselect pg_catalog.pg_advisory_xact_lock(42);\n")
    command = (
        "import sys; from pyjobs import migrate; migrate.migrate(sys.argv[1], root=sys.argv[2])"
    )
    with psycopg.connect(killed, autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(42)")
        process = subprocess.Popen([sys.executable, "-c", command, killed, tree.root])
        wait_until(
            # In this database: other tests' have gates of that number, too.
            lambda: (
                gate.execute(
                    "select from pg_locks where objid = 42 and not granted"
                    " and database ="
                    " (select oid from pg_database where datname = current_database())"
                ).rowcount
            ),
            f"it stands in {place}",
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        interrupted.write_text(text)
        # The killed one's statement still runs on the server: the next one waits for it.
        again = background(migrate.migrate, killed, root=tree.root)
        wait_until(
            lambda: (
                gate.execute(
                    "select from pg_stat_activity where application_name = 'pyjobs migrate'"
                    " and datname = current_database() and state = 'idle'"
                ).rowcount
            ),
            "the next one has come",
        )
        assert not again.done()
    assert again.result(60).changed
    assert dump(killed) == dump(whole)
    assert migrate.migrate(killed, root=tree.root) == migrate.Report()


def test_a_migration_without_transaction_is_marked_when_it_is_done(empty, tree):
    tree.migration(
        "0003.index",
        "-- An index.\n-- transactional: false\n-- depends: 0002.colour\n"
        "create index concurrently if not exists thing_note on pyjobs_internal.thing (note);\n",
    )
    tree.migration(
        "0004.more", "-- depends: 0003.index\ncreate table if not exists pyjobs_internal.m (i int);"
    )
    report = migrate.migrate(empty, root=tree.root)
    assert report.migrations == ("0001.schema", "0002.colour", "0003.index", "0004.more")
    assert report.files[-1] == "grants.sql"
    assert query(
        empty, "select indisvalid from pg_index where indexrelid::regclass::text like '%thing_note'"
    ) == [(True,)]
    assert migrate.migrate(empty, root=tree.root) == migrate.Report()


@pytest.mark.parametrize(
    ("held", "wanted"), [("batch", "job"), ("job", "batch")], ids=["recorder", "producer"]
)
def test_a_migration_of_tables_in_use_is_in_nobodys_deadlock(empty, background, held, wanted):
    """Callers lock the two tables in either order: a migration holds one of them at most."""
    applied = migrate.migrate(empty).migrations
    migrate.rollback(empty, count=sum(name >= "0007" for name in applied))
    with psycopg.connect(empty) as first, psycopg.connect(empty) as second:
        first.execute(f"lock table pyjobs_internal.{wanted} in row exclusive mode")
        second.execute(f"lock table pyjobs_internal.{held} in row exclusive mode")
        migrating = background(migrate.migrate, empty)
        wait_until(
            lambda: query(
                empty,
                "select 1 from pg_locks where mode = 'AccessExclusiveLock' and not granted"
                " and relation::regclass::text in ('pyjobs_internal.job', 'pyjobs_internal.batch')"
                " and database = (select oid from pg_database where datname = current_database())",
            ),
            "the migration waits for a table",
        )
        late = background(second.execute, f"lock table pyjobs_internal.{wanted} in share mode")
        first.rollback()
        late.result(60)
        second.rollback()
    assert migrating.result(120).migrations[0].startswith("0007")
    assert migrate.migrate(empty) == migrate.Report()


def storage(url):
    return dict(
        query(
            url,
            "select relname, reloptions::text from pg_class"
            " where relnamespace = 'pyjobs_internal'::regnamespace and reloptions is not null",
        )
    )


def test_storage_that_an_operator_has_set_stays(empty):
    applied = migrate.migrate(empty).migrations
    assert storage(empty)["batch"] == "{autovacuum_vacuum_scale_factor=0.05,fillfactor=80}"
    migrate.rollback(empty, count=sum(name >= "0009" for name in applied))
    assert storage(empty) == {}
    query(
        empty,
        "alter table pyjobs_internal.batch"
        " set (autovacuum_vacuum_scale_factor = 0.02, fillfactor = 95)",
    )
    migrate.migrate(empty)
    assert storage(empty)["batch"] == "{autovacuum_vacuum_scale_factor=0.02,fillfactor=95}"
    assert storage(empty)["stage"] == "{autovacuum_vacuum_scale_factor=0.05,fillfactor=50}"


# -- what changes


def test_a_plan_tells_what_would_be_done_and_changes_nothing(empty, tree):
    before = dump(empty, data=True)
    plan = migrate.migrate(empty, plan=True, root=tree.root)
    assert dump(empty, data=True) == before
    done = migrate.migrate(empty, root=tree.root)
    assert plan.planned
    assert plan.migrations == done.migrations
    assert sorted(plan.files) == sorted(done.files)

    tree.replace("worker/paint.sql", "colour text", "colour text, coats int default 1")
    tree.remove("internal/first_thing.sql")
    before = dump(empty, data=True)
    plan = migrate.migrate(empty, plan=True, root=tree.root)
    assert dump(empty, data=True) == before
    assert plan.files == ("worker/paint.sql", "grants.sql")
    assert plan.removed == ("internal/first_thing.sql",)
    assert plan.dropped == ("function pyjobs_internal.first_thing()",)


def test_only_what_changed_is_deployed_and_the_grants_after_it(empty, tree):
    migrate.migrate(empty, root=tree.root)
    tree.replace("worker/paint.sql", "return paint.colour", "return upper(paint.colour)")
    report = migrate.migrate(empty, root=tree.root)
    assert report.files == ("worker/paint.sql", "grants.sql")
    assert query(empty, "select pyjobs.paint(1, 'red')") == [("RED",)]


def test_a_changed_signature_leaves_no_old_overload(empty, tree):
    migrate.migrate(empty, root=tree.root)
    tree.replace("worker/paint.sql", "id bigint, colour text", "id bigint, colour text, coats int")
    report = migrate.migrate(empty, root=tree.root)
    assert [f for f in functions(empty) if "paint" in f] == ["pyjobs.paint(bigint,text,integer)"]
    assert report.dropped == ("function pyjobs.paint(bigint,pg_catalog.text)",)


def test_a_changed_signature_leaves_no_old_overload_after_the_script_for_psql(empty, tree, cluster):
    subprocess.run(
        [cluster.psql_path, "-X", "-q", "-v", "ON_ERROR_STOP=1", empty],
        input=migrate.schema_sql(_in_order(tree)),
        text=True,
        check=True,
        capture_output=True,
    )
    tree.replace("worker/paint.sql", "id bigint, colour text", "id bigint, colour text, coats int")
    report = migrate.migrate(empty, root=tree.root)
    assert report.dropped == ("function pyjobs.paint(bigint,pg_catalog.text)",)
    assert [f for f in functions(empty) if "paint" in f] == ["pyjobs.paint(bigint,text,integer)"]


def _in_order(tree):
    """The script cannot try again: what needs the view comes after it."""
    (tree.root / "sql/worker").mkdir(exist_ok=True)
    (tree.root / "sql/internal/first_thing.sql").rename(tree.root / "sql/worker/first_thing.sql")
    return tree.root


def test_a_changed_result_is_deployed_with_all_that_needs_it(empty, tree):
    migrate.migrate(empty, root=tree.root)
    tree.replace("internal/double.sql", "returns int", "returns bigint")
    tree.replace("internal/double.sql", "n * 2", "n * 2::bigint")
    report = migrate.migrate(empty, root=tree.root)
    # The view calls it, and a function returns the view's rows.
    assert set(report.files) == {
        "internal/double.sql",
        "views/thing.sql",
        "internal/first_thing.sql",
        "grants.sql",
    }
    assert report.dropped == ()
    rows = query(
        empty, "select doubled, pg_typeof(doubled)::text from pyjobs_internal.first_thing()"
    )
    assert rows == [(2, "bigint")]


def test_a_view_that_loses_a_column_is_made_anew(empty, tree):
    migrate.migrate(empty, root=tree.root)
    tree.replace("views/thing.sql", "id, note, ", "id, ")
    migrate.migrate(empty, root=tree.root)
    assert query(empty, "select * from pyjobs_internal.first_thing()") == [(1, 2)]


def test_what_is_made_anew_is_granted_again(empty, tree):
    migrate.migrate(empty, root=tree.root)
    tree.replace("worker/paint.sql", "returns text", "returns varchar")
    migrate.migrate(empty, root=tree.root)
    granted = "select has_function_privilege(%s, 'pyjobs.paint(bigint, text)', 'execute')"
    assert query(empty, granted, "pyjobs_worker") == [(True,)]
    assert query(empty, granted, "public") == [(False,)]


def test_what_an_application_built_upon_it_is_never_dropped(empty, tree):
    migrate.migrate(empty, root=tree.root)
    query(empty, "create schema app")
    query(empty, "create view app.painted as select note, doubled from pyjobs.thing")
    before = dump(empty, data=True)
    tree.replace("internal/double.sql", "returns int", "returns bigint")
    tree.replace("internal/double.sql", "n * 2", "n * 2::bigint")
    with pytest.raises(migrate.MigrationError, match=r"view app\.painted"):
        migrate.migrate(empty, root=tree.root)
    with pytest.raises(migrate.MigrationError, match=r"view app\.painted"):
        migrate.rollback(empty, root=tree.root)
    assert dump(empty, data=True) == before


def test_a_removed_file_takes_its_function_along(empty, tree):
    migrate.migrate(empty, root=tree.root)
    tree.remove("worker/paint.sql")
    tree.replace("grants.sql", "grant execute on function pyjobs.paint to pyjobs_worker;\n", "")
    report = migrate.migrate(empty, root=tree.root)
    assert report.removed == ("worker/paint.sql",)
    assert report.dropped == ("function pyjobs.paint(bigint,pg_catalog.text)",)
    assert not [f for f in functions(empty) if "paint" in f]
    assert migrate.migrate(empty, root=tree.root) == migrate.Report()


@pytest.mark.parametrize("result", ["text", "varchar"])
def test_a_function_may_move_to_another_file(empty, tree, result):
    migrate.migrate(empty, root=tree.root)
    (tree.root / "sql/operator").mkdir()
    (tree.root / "sql/worker/paint.sql").rename(tree.root / "sql/operator/paint.sql")
    tree.replace("operator/paint.sql", "returns text", f"returns {result}")
    report = migrate.migrate(empty, root=tree.root)
    assert report.files == ("operator/paint.sql", "grants.sql")
    assert report.dropped == ()
    assert query(empty, "select pg_typeof(pyjobs.paint(1, 'red'))::text") == [
        ({"text": "text", "varchar": "character varying"}[result],)
    ]


def test_what_was_dropped_by_hand_comes_back(empty, tree):
    migrate.migrate(empty, root=tree.root)
    query(empty, "drop function pyjobs.paint")
    assert migrate.migrate(empty, root=tree.root).files == ("worker/paint.sql", "grants.sql")
    assert query(empty, "select pyjobs.paint(1, 'red')") == [("red",)]


def test_what_is_for_tests_is_not_deployed(empty, tree):
    migrate.migrate(empty, root=tree.root)
    assert query(empty, "select to_regclass('pyjobs_internal.test_clock')") == [(None,)]


# -- what goes wrong


def test_a_file_with_an_error_is_named_with_its_line_and_nothing_is_changed(empty, tree):
    migrate.migrate(empty, root=tree.root)
    before = dump(empty, data=True)
    tree.replace("internal/double.sql", "select n * 2", "select n * 3")
    tree.write("worker/wrong.sql", "-- a comment\n\ncreate function pyjobs.wrong() retruns int;\n")
    tree.migration("0003.more", "create table if not exists pyjobs_internal.more (id int);\n")
    with pytest.raises(migrate.MigrationError, match=r"sql/worker/wrong\.sql:3: .*retruns"):
        migrate.migrate(empty, root=tree.root)
    assert dump(empty, data=True) == before


def test_a_migration_with_an_error_is_named_and_nothing_is_changed(empty, tree):
    before = dump(empty, data=True)
    tree.migration("0003.wrong", "select 1;\nselect no_such_function();\n")
    with pytest.raises(migrate.MigrationError, match=r"migrations/0003\.wrong\.sql.*no_such_func"):
        migrate.migrate(empty, root=tree.root)
    assert dump(empty, data=True) == before


def test_something_missing_in_every_round_is_named(empty, tree):
    tree.write("views/other.sql", "create view pyjobs.other as select * from pyjobs.nowhere;\n")
    with pytest.raises(migrate.MigrationError, match=r"sql/views/other\.sql:1: .*nowhere"):
        migrate.migrate(empty, root=tree.root)


def test_a_database_that_is_newer_is_left_alone(empty, tree):
    tree.migration("0003.future", "create table if not exists pyjobs_internal.future (id int);\n")
    migrate.migrate(empty, root=tree.root)
    (tree.root / "migrations/0003.future.sql").unlink()
    (tree.root / "migrations/0003.future.rollback.sql").unlink()
    with pytest.raises(migrate.MigrationError, match=r"newer.*0003\.future"):
        migrate.migrate(empty, root=tree.root)


def test_a_role_that_does_not_own_the_database_is_told(cluster, database, tree):
    with pytest.raises(migrate.MigrationError, match="owns the database"):
        migrate.migrate(database.dsn_of("worker"), root=tree.root)


def test_settings_of_the_role_and_the_database_do_not_matter(empty, tree, cluster):
    tree.write("data/slow.sql", "select pg_catalog.pg_sleep(0.3);\n")
    name = psycopg.conninfo.conninfo_to_dict(empty)["dbname"]
    with psycopg.connect(cluster.dsn(name), autocommit=True) as conn:
        conn.execute("create schema trap")
        conn.execute("create function trap.age(xid) returns int language sql as 'select 1 / 0'")
        for setting in (
            "search_path = trap, pg_catalog",
            "statement_timeout = '100ms'",
            "default_transaction_read_only = on",
            "default_transaction_isolation = serializable",
            "client_encoding = 'LATIN1'",
        ):
            conn.execute(f'alter database "{name}" set {setting}')
        conn.execute(f'grant usage on schema trap to "{cluster.owner}"')
    assert migrate.migrate(empty, root=tree.root).changed
    assert migrate.migrate(empty, root=tree.root) == migrate.Report()


def test_line_ends_of_a_checkout_are_no_change(empty, tree):
    migrate.migrate(empty, root=tree.root)
    path = tree.root / "sql/worker/paint.sql"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert migrate.migrate(empty, root=tree.root) == migrate.Report()


@pytest.mark.parametrize("form", ["keywords", "url"])
def test_any_connection_string_will_do(empty, tree, form):
    parts = psycopg.conninfo.conninfo_to_dict(empty)
    if form == "url":
        from urllib.parse import quote

        empty = "postgresql://{user}:{password}@/{dbname}?host={host}&port={port}".format(
            **{key: quote(str(value), safe="") for key, value in parts.items()}
        )
    assert migrate.migrate(empty, root=tree.root).changed


# -- out of the wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and unpacked as pip installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run(
        [*pip, "--no-deps", "--target", folder / "site", wheel], check=True, capture_output=True
    )
    return folder / "site"


def test_the_wheel_brings_its_schema_and_migrates_from_any_folder(
    installed, make_database, cluster, tmp_path
):
    from_source, by_command, by_script = make_database(), make_database(), make_database()
    migrate.migrate(from_source)
    # Isolated from the source tree: the folder of the wheel comes first.
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*command):
        return subprocess.run(
            [sys.executable, *command],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        ).stdout

    tell = (
        "import pyjobs; from pyjobs import migrate; print(pyjobs.__file__, migrate.schema_root())"
    )
    assert all(Path(word).is_relative_to(installed) for word in run("-c", tell).split())
    command = installed / "bin" / "pyjobs"
    run(command, "migrate", "--database-url", by_command)
    assert dump(by_command) == dump(from_source)

    subprocess.run(
        [cluster.psql_path, "-X", "-q", "-v", "ON_ERROR_STOP=1", by_script],
        input=run(command, "sql"),
        check=True,
        capture_output=True,
        text=True,
    )
    assert dump(by_script) == dump(from_source)
