"""Moved with jobs in flight: by dump and restore, by pg_upgrade, to a moment of the past.

From PostgreSQL 15 to the embedded 18, while workers work. What was moved is consistent as it
stands; leases are good for the results that they were given for, and for no others; every job goes
on to its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pyjobs import embedded, migrate
from tests.beyond.support import older, pair
from tests.beyond.support.flight import Flight, land, record_all, take_off
from tests.beyond.support.ledger import Ledger
from tests.beyond.support.load import TABLES, Producer, RawWorker
from tests.beyond.support.pair import APP, DATABASE, run
from tests.beyond.support.verify import wrong_about
from tests.support import wait_until
from tests.support.calls import Calls
from tests.support.cluster import _memory
from tests.support.rules import broken_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUES = ["flight", "lane", "default"]
SCHEMAS = ("pyjobs", "pyjobs_internal", "pyjobs_deploy")
ROOT = Path(__file__).parents[2]


class Work:
    """Workers and a producer as threads, on one server, until they are told to end."""

    def __init__(self, dsn: str, folder: Path, names: str = "ab") -> None:
        self.ledger = Ledger(folder / "ledger")
        self._sessions = [
            *(RawWorker(dsn, self.ledger, name, pause=0.02) for name in names),
            Producer(dsn, self.ledger, "producer", backlog=20),
        ]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Work:
        for session in self._sessions:
            thread = threading.Thread(target=session.run, name=session.name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.stopping.set()
        for thread in self._threads:
            thread.join(30)

    def goes_on(self, wanted: int = 10) -> None:
        begun = len(self.ledger.read("recorded"))
        wait_until(
            lambda: len(self.ledger.read("recorded")) >= begun + wanted,
            f"{wanted} more results are acknowledged",
            timeout=60,
        )


@dataclasses.dataclass
class Source:
    """A 15 with jobs in flight, at which workers are at work."""

    server: embedded.EmbeddedServer
    flight: Flight
    work: Work


@pytest.fixture(scope="module")
def programs() -> Path:
    return older.older_binaries()


def far_ahead(server: embedded.EmbeddedServer) -> None:
    """Its transactions are counted far ahead of those of any server that it is moved to."""
    server._shut_down()
    run(
        server._bin / "pg_resetwal",
        *("-e", "7", "-x", "100000000", "-D", str(server.data_dir)),
        **pair.as_owner(server),
    )
    # What pg_resetwal leaves to the administrator: the page of the commit log.
    page = server.data_dir / "pg_xact" / "005F"
    page.write_bytes(bytes(262144))
    embedded._Account.choose().give(page)
    server.restart()


@pytest.fixture(scope="module")
def source(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with older.server_of(programs, settings=embedded.THROWAWAY, temp_dir=_memory()) as server:
        far_ahead(server)
        pair.make_database(server)
        dsn = server.url(DATABASE, APP)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(TABLES.encode())
            flight = take_off(Calls(conn))
        with Work(dsn, tmp_path_factory.mktemp("source")) as work:
            work.goes_on(20)
            yield Source(server, flight, work)


@pytest.fixture(scope="module")
def target() -> Iterator[embedded.EmbeddedServer]:
    """Another server, of today's version, on which nothing of pyjobs has ever been."""
    with embedded.server(settings=embedded.THROWAWAY, temp_dir=_memory()) as server:
        yield server


@contextlib.contextmanager
def room(server: embedded.EmbeddedServer, *, owner: str = APP) -> Iterator[str]:
    """An empty database; its name."""
    name = f"moved_{os.urandom(4).hex()}"
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f"create database {name} owner {owner}".encode())
        yield name
        admin.execute(f"drop database {name} with (force)".encode())


def move_roles(old: embedded.EmbeddedServer, new: embedded.EmbeddedServer, folder: Path) -> None:
    """By pg_dumpall; what is there already is said to be, and stays."""
    told = folder / "roles.sql"
    program = embedded.find_binaries() / "pg_dumpall"
    run(program, "--roles-only", "--no-role-passwords", "-d", old.url(), "-f", str(told))
    run(new.psql_path, "-qX", "-d", new.url(), "-f", str(told))


def goes_on(
    calls: Calls, flight: Flight, before: list[dict[str, Any]], *, late: bool = True
) -> None:
    """What was moved is consistent, takes the late results, and comes to its ends.

    ``before``: what was acknowledged until the move began, all of which must be there.
    """
    assert broken_rules(calls.conn) == []
    recorded = {
        (row["id"], row["lease_epoch"])
        for row in calls.rows("select id, lease_epoch from pyjobs.batch where state = 'recorded'")
    }
    assert {(e["batch"], e["epoch"]) for e in before if e["what"] == "recorded"} <= recorded
    jobs = {row["id"]: row["name"] for row in calls.rows("select id, name from pyjobs.job")}
    assert {e["job"]: e["name"] for e in before if e["what"] == "enqueued"}.items() <= jobs.items()
    owner = calls.value("select relowner::regrole::text from pg_class where relname = 'claim_mark'")
    assert owner == APP
    if late:
        results_come_late(calls, flight)
    calls.settable_clock()
    assert land(calls, QUEUES) == []
    assert calls.audit() == []
    with contextlib.closing(Ledger(os.devnull)) as nothing:
        assert wrong_about(calls.conn, nothing) == []
    ends = {name: calls.status(job) for name, job in flight.jobs.items()}
    revoked = {"cancelled with grace", "cancelled at once"}
    assert {name for name, end in ends.items() if end == "REVOKED"} == revoked
    assert {name for name, end in ends.items() if end == "FAILURE"} == {"failed"}


def results_come_late(calls: Calls, flight: Flight) -> None:
    """Who held a lease when the move began posts it at the new place."""

    def post(name: str) -> str:
        batch = flight.leases[name]
        calls.do("begin")
        try:
            calls.do(
                "insert into public.result values (%s, %s, %s)",
                batch["batch_id"],
                batch["lease_epoch"],
                len(batch["items"]),
            )
            row = calls.record(batch, (), {"late": 1})
        except psycopg.Error as error:
            calls.do("rollback")
            return str(error.sqlstate)
        calls.do("commit")
        return str(row["job_status"])

    assert post("leased") == "STARTED"
    assert post("leased") == "PJ002"
    assert post("last out") == "SUCCESS"
    assert post("cancelled with grace") == "REVOKED"
    assert post("cancelled at once") == "PJ001"
    # Run out, and given to somebody else at the new place.
    assert "failed" in {row["action"] for row in calls.rows("select * from pyjobs.reap()")}
    assert post("expired") == "PJ001"
    assert post("half") == "STARTED"
    assert post("retried") == "STARTED"


def dump(source: Source, how: str, folder: Path, *more: str) -> Path:
    to = folder / "dump"
    jobs = ["--jobs", "2"] if how == "directory" else []
    run(
        embedded.find_binaries() / "pg_dump",
        *("--format", how, *jobs, "--file", str(to), *more, source.server.url(DATABASE)),
    )
    return to


def restore(target: embedded.EmbeddedServer, dumped: Path, name: str, *more: str) -> str:
    return run(target.bin_dir / "pg_restore", "-d", target.url(name), *more, str(dumped))


@pytest.mark.parametrize("how", ["plain", "custom", "one transaction", "directory"])
def test_a_dump_of_15_taken_while_all_work_goes_on_in_18(source, target, tmp_path, how):
    source.work.goes_on()
    before = source.work.ledger.read()
    dumped = dump(source, "custom" if how == "one transaction" else how, tmp_path)
    source.work.goes_on()  # the dump was in nobody's way
    move_roles(source.server, target, tmp_path)
    with room(target) as name:
        if how == "plain":
            psql = ("-qX", "-v", "ON_ERROR_STOP=1", "-d", target.url(name), "-f", str(dumped))
            run(target.psql_path, *psql)
        elif how == "directory":
            restore(target, dumped, name, "--jobs", "2", "--exit-on-error")
        else:
            more = ["--single-transaction"] if how == "one transaction" else ["--exit-on-error"]
            restore(target, dumped, name, *more)
        report = migrate.migrate(target.url(name, APP))
        assert (report.migrations, report.files, report.dropped) == ((), (), ())
        with psycopg.connect(target.url(name, APP), autocommit=True) as conn:
            goes_on(Calls(conn), source.flight, before)


@pytest.mark.parametrize("how", ["no roles", "no privileges"])
def test_a_restore_that_lost_the_grants_is_put_right_by_migrate(source, programs, tmp_path, how):
    """Each revoke from the public is lost with the grants beside it: migrate must see that."""
    before = source.work.ledger.read()
    dumped = dump(source, "custom", tmp_path)
    with embedded.server(settings=embedded.THROWAWAY, temp_dir=_memory()) as empty:
        if how == "no privileges":
            move_roles(source.server, empty, tmp_path)
        with psycopg.connect(empty.url(), autocommit=True) as admin:
            if how == "no roles":
                admin.execute(f"create role {APP} login createrole".encode())
            admin.execute(f"create database {DATABASE} owner {APP}".encode())
        more = ["--no-privileges"] if how == "no privileges" else []
        done = subprocess.run(
            [empty.bin_dir / "pg_restore", "-d", empty.url(DATABASE), *more, dumped],
            check=False,
            capture_output=True,
            text=True,
        )
        lost = re.findall(r'role "(pyjobs_\w+)" does not exist', done.stderr)
        assert (done.returncode, bool(lost)) == ((1, True) if how == "no roles" else (0, False))
        with psycopg.connect(empty.url(DATABASE, APP), autocommit=True) as conn:
            calls = Calls(conn)
            public = "select has_function_privilege('public', %s::regprocedure, 'execute')"
            assert calls.value(public, "pyjobs.pause_job(bigint)")
            assert migrate.migrate(empty.url(DATABASE, APP)).files == ("grants.sql",)
            assert not calls.value(public, "pyjobs.pause_job(bigint)")
            goes_on(calls, source.flight, before)


def test_data_alone_goes_into_a_migrated_schema_with_triggers_off(source, target, tmp_path):
    """The guard lets no job begin in any state but the first: not even a COPY's."""
    before = source.work.ledger.read()
    own = ("pyjobs_deploy.*", "pyjobs_internal.job_state", "pyjobs_internal.job_transition")
    left_out = [f"--exclude-table-data={table}" for table in own]
    dumped = dump(source, "custom", tmp_path, "--data-only", *left_out)
    move_roles(source.server, target, tmp_path)
    with room(target) as name:
        migrate.migrate(target.url(name, APP))
        with psycopg.connect(target.url(name, APP), autocommit=True) as conn:
            conn.execute(TABLES.encode())
            conn.execute("truncate public.bare")
            with pytest.raises(AssertionError, match="a job cannot begin as"):
                restore(target, dumped, name, "--single-transaction")
            assert Calls(conn).value("select count(*) from pyjobs.job") == 0
            restore(target, dumped, name, "--single-transaction", "--disable-triggers")
            goes_on(Calls(conn), source.flight, before)


@pytest.mark.parametrize("how", ["copy", "link"])
def test_pg_upgrade_from_15_goes_on_in_18(programs, tmp_path, how):
    """In place, with rows, transaction ids and sequences as they were."""
    with (
        pair.folder(_memory()) as folder,
        older.server_of(programs, settings=embedded.THROWAWAY, temp_dir=_memory()) as old,
    ):
        far_ahead(old)
        pair.make_database(old)
        dsn = old.url(DATABASE, APP)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(TABLES.encode())
            flight = take_off(Calls(conn))
        with Work(dsn, tmp_path, "a") as work:
            work.goes_on(20)
        before = work.ledger.read()
        old._shut_down()
        embedded._Account.choose().give(folder)
        new = folder / "new"
        with embedded.server(settings=embedded.THROWAWAY, temp_dir=_memory()) as server:
            binaries = server._bin
            as_owner = {**pair.as_owner(server), "cwd": str(folder)}
            options = ("--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync")
            run(binaries / "initdb", "-D", str(new), *options, "--no-data-checksums", **as_owner)
            said = run(
                binaries / "pg_upgrade",
                *("-b", str(old._bin), "-B", str(binaries), "-U", "postgres", f"--{how}"),
                *("-d", str(old.data_dir), "-D", str(new), "--socketdir", str(folder)),
                **as_owner,
            )
            assert "Upgrade Complete" in said
        with embedded.server(new, settings=embedded.THROWAWAY, temp_dir=_memory()) as server:
            assert migrate.migrate(server.url(DATABASE, APP)) == migrate.Report()
            with psycopg.connect(server.url(DATABASE, APP), autocommit=True) as conn:
                calls = Calls(conn)
                assert calls.value("select pg_current_xact_id()::text::numeric > 7 * 2::numeric^32")
                goes_on(calls, flight, before)


@dataclasses.dataclass
class Past:
    folder: Path
    archive: Path
    flight: Flight
    before: list[dict[str, Any]]
    #: leases of a job that was started after the moment
    lost: list[dict[str, Any]]

    @contextlib.contextmanager
    def again(self) -> Iterator[embedded.EmbeddedServer]:
        """The server as it was then."""
        data = self.folder / f"again {os.urandom(4).hex()}"
        shutil.copytree(self.folder / "copy", data)
        (data / "recovery.signal").touch()
        settings = {
            **embedded.THROWAWAY,
            "restore_command": f"cp {self.archive}/%f %p",
            "recovery_target_name": "then",
            "recovery_target_action": "promote",
        }
        embedded._Account.choose().give_all(data)
        with embedded.server(data, settings=settings, temp_dir=_memory()) as server:
            with psycopg.connect(server.url(), autocommit=True) as admin:
                wait_until(
                    lambda: admin.execute("select pg_is_in_recovery()").fetchone() == (False,),
                    "it is back at that moment",
                    60,
                )
            yield server


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """A server that archives its log, a copy of it, and a moment after the copy; it went on."""
    with pair.folder(_memory()) as folder:
        archive = folder / "archive"
        archive.mkdir()
        embedded._Account.choose().give(archive)
        settings = {
            **embedded.THROWAWAY,
            "full_page_writes": "on",
            "archive_mode": "on",
            "archive_command": f"cp %p {archive}/%f",
        }
        with embedded.server(settings=settings, temp_dir=_memory()) as server:
            pair.make_database(server)
            dsn = server.url(DATABASE, APP)
            with (
                psycopg.connect(dsn, autocommit=True) as conn,
                psycopg.connect(server.url(), autocommit=True) as admin,
                Work(dsn, tmp_path_factory.mktemp("past")) as work,
            ):
                conn.execute(TABLES.encode())
                calls = Calls(conn)
                work.goes_on()
                pair.base_backup(server, folder / "copy")
                flight = take_off(calls)
                work.goes_on()
                before = work.ledger.read()
                admin.execute("select pg_create_restore_point('then')")
                work.goes_on(20)
                # What nobody will know of who goes back to then.
                lost = calls.enqueue("flight", 300, name="lost")
                batches = calls.claim(lost, 300, worker="of the future")
                work.goes_on()
            with psycopg.connect(server.url(), autocommit=True) as admin:
                (last,) = admin.execute("select pg_walfile_name(pg_switch_wal())").fetchone()
                wait_until(
                    lambda: admin.execute(
                        "select from pg_stat_archiver where last_archived_wal >= %s", [last]
                    ).fetchall(),
                    "all is archived",
                    60,
                )
        yield Past(folder, archive, flight, before, batches)


def test_a_server_brought_back_to_a_moment_goes_on_from_there(past):
    with past.again() as server:
        dsn = server.url(DATABASE, APP)
        with psycopg.connect(dsn, autocommit=True) as conn:
            calls = Calls(conn)
            assert calls.value("select count(*) from pyjobs.job where name = 'lost'") == 0
            goes_on(calls, past.flight, past.before)


def of_the_manual(beginning: str) -> str:
    """The SQL of the manual that begins so."""
    text = (ROOT / "docs" / "operating.md").read_text()
    (found,) = re.findall(rf"```sql\n({re.escape(beginning)}.*?)```", text, re.DOTALL)
    return str(found)


@pytest.mark.parametrize("step", ["without", "with"])
def test_a_lease_of_the_lost_future_is_nobodys_when_ids_were_moved_on(past, step):
    """Ids that were given out after the moment are given out once more, to other jobs.

    So whoever comes from the future with such a lease would record another job's batch. The
    manual's step keeps the two apart.
    """
    late = past.lost[-1]
    with (
        past.again() as server,
        psycopg.connect(server.url(DATABASE, APP), autocommit=True) as conn,
    ):
        calls = Calls(conn)
        if step == "with":
            conn.execute(of_the_manual("select setval").encode())
        job = calls.enqueue("flight", 3000, name="of the present")
        claimed = {row["batch_id"] for row in calls.claim(job, 3000, lease="1 hour")}
        if step == "without":
            assert late["batch_id"] in claimed
            assert calls.record(late)["job_id"] == job
        else:
            assert late["batch_id"] not in claimed
            with pytest.raises(psycopg.Error) as info:
                calls.record(late)
            assert info.value.sqlstate == "PJ004"


def test_logical_replication_from_15_goes_on_in_18(programs, target, tmp_path):
    """With every table published, while all work; sequences are not replicated, and come last."""
    settings = {**embedded.THROWAWAY, "wal_level": "logical"}
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(older.server_of(programs, settings=settings, temp_dir=_memory()))
        pair.make_database(old)
        move_roles(old, target, tmp_path)
        name = stack.enter_context(room(target))
        migrate.migrate(target.url(name, APP))
        dsn = old.url(DATABASE, APP)
        with (
            psycopg.connect(dsn, autocommit=True) as conn,
            psycopg.connect(target.url(name), autocommit=True) as there,
            psycopg.connect(old.url(DATABASE), autocommit=True) as here,
        ):
            for tables in (conn, there):
                tables.execute(TABLES.encode())
            for table in ("result", "ordered", "bare"):
                there.execute(f"alter table public.{table} owner to {APP}".encode())
            there.execute(
                "truncate public.bare, pyjobs_internal.job_state, pyjobs_internal.job_transition"
            )
            for table in there.execute(
                "select format('truncate %I.%I', schemaname, tablename) from pg_tables "
                "where schemaname = 'pyjobs_deploy'"
            ).fetchall():
                there.execute(table[0].encode())
            here.execute("create publication everything for all tables")
            calls = Calls(conn)
            flight = take_off(calls)
            with Work(dsn, tmp_path, "a") as work:
                work.goes_on()
                there.execute(
                    "create subscription everything connection '{}' publication everything".format(
                        old.url(DATABASE).replace("'", "''")
                    ).encode()
                )
                wait_until(
                    lambda: (
                        not there.execute(
                            "select from pg_subscription_rel where srsubstate <> 'r'"
                        ).fetchall()
                    ),
                    "all tables are copied",
                    60,
                )
                work.goes_on(20)
                # To its end, which deletes its low-water marks.
                marked = flight.jobs["marked"]
                out = "select id as batch_id, lease_epoch, '{0}'::int[] as items from pyjobs.batch "
                record_all(
                    calls, calls.rows(out + "where job_id = %s and state = 'leased'", marked)
                )
                record_all(calls, calls.claim(marked, 1000))
                assert calls.status(marked) == "SUCCESS"
            before = work.ledger.read()
            (sent,) = here.execute("select pg_current_wal_lsn()").fetchone()
            wait_until(
                lambda: here.execute(
                    "select from pg_stat_replication where replay_lsn >= %s", [sent]
                ).fetchall(),
                "all has arrived",
                60,
            )
            there.execute("drop subscription everything")
        with (
            psycopg.connect(old.url(DATABASE), autocommit=True) as here,
            psycopg.connect(target.url(name), autocommit=True) as there,
        ):
            for (statement,) in here.execute(of_the_manual("select format").encode()).fetchall():
                there.execute(statement.encode())
        assert migrate.migrate(target.url(name, APP)) == migrate.Report()
        with psycopg.connect(target.url(name, APP), autocommit=True) as conn:
            goes_on(Calls(conn), flight, before)
