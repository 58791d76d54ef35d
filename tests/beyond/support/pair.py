"""A primary with a standby by streaming replication, on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import conninfo

from pyjobs import embedded, migrate
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DATABASE = "jobs"
# The application's role: owner of the database, and no superuser.
APP = "app"
PASSWORD = "app"  # loopback only, and gone with the server


@contextlib.contextmanager
def folder(memory: str | None = None) -> Iterator[Path]:
    """A folder that the server's user can reach, for data of our own making."""
    account = embedded._Account.choose()
    made = Path(tempfile.mkdtemp(prefix="pyjobs-beyond-", dir=account.temp_dir(memory)))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def run(program: Path | str, *arguments: str, **more: Any) -> str:
    """Run a program to its end; what it said, or an AssertionError that has it."""
    done = subprocess.run(
        [str(program), *arguments], check=False, capture_output=True, text=True, **more
    )
    assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def base_backup(server: embedded.EmbeddedServer, target: Path, *more: str) -> None:
    """A copy of a running server's data."""
    run(
        server.bin_dir / "pg_basebackup",
        *("-D", str(target), "-X", "stream", "-c", "fast", "--no-sync"),
        *("-d", server.url() + "&application_name=standby"),
        *more,
    )
    embedded._Account.choose().give_all(target)


def processes(server: embedded.EmbeddedServer) -> list[int]:
    """Every process of a server, the postmaster first."""
    assert server.pid is not None
    return [server.pid, *embedded._children(server.pid)]


def make_database(server: embedded.EmbeddedServer) -> None:
    """Roles, a database of the application's, and pyjobs in it."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(migrate.roles_sql().encode() or b"select 1")
        admin.execute(f"create role {APP} login password '{PASSWORD}'".encode())
        admin.execute(f"create database {DATABASE} owner {APP}".encode())
    migrate.migrate(server.url(DATABASE, APP))


class Pair:
    """Two servers, of which one follows the other; commits wait for both.

    ``dsn`` names both, as an application would, and asks for the one that takes writes.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, memory: str | None = None
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._settings = dict(embedded.THROWAWAY if settings is None else settings)
        self._memory = memory

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(folder(self._memory))
            self.first = stack.enter_context(self._server())
            self.primary = self.first
            make_database(self.first)
            base_backup(self.first, self._folder / "second", "-R")
            self.second = stack.enter_context(self._server(self._folder / "second"))
            self.standby = self.second
            self.follow()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.first, self.second):
            if server.pid is not None:
                resume(server)
        self._stack.close()

    def _server(self, data_dir: Path | None = None) -> embedded.EmbeddedServer:
        return embedded.server(data_dir, settings=self._settings, temp_dir=self._memory)

    def follow(self) -> None:
        """From here on the primary's commits wait for the standby."""
        with psycopg.connect(self.primary.url(), autocommit=True) as admin:
            wait_until(
                lambda: admin.execute(
                    "select from pg_stat_replication where state = 'streaming'"
                ).fetchall(),
                "the standby follows",
                timeout=60,
            )
            admin.execute("alter system set synchronous_standby_names = '*'")
            admin.execute("select pg_reload_conf()")
            wait_until(
                lambda: admin.execute(
                    "select from pg_stat_replication where sync_state in ('sync', 'quorum')"
                ).fetchall(),
                "commits wait for the standby",
                timeout=60,
            )

    @property
    def dsn(self) -> str:
        return self.dsn_with()

    def dsn_with(self, **more: Any) -> str:
        """Both hosts; ``more`` are parameters of libpq."""
        ports = f"{self.first.port},{self.second.port}"
        return conninfo.make_conninfo(
            host="127.0.0.1,127.0.0.1",
            port=ports,
            dbname=DATABASE,
            user=APP,
            password=PASSWORD,
            target_session_attrs="read-write",
            **more,
        )

    def promote(self) -> None:
        """Make the standby the primary, as whoever watches over the two would."""
        with psycopg.connect(self.standby.url(), autocommit=True) as admin:
            admin.execute("select pg_promote(true, 60)")
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Bring the old primary back as the new one's standby, from a fresh copy."""
        old = self.standby
        shutil.rmtree(old.data_dir)
        base_backup(self.primary, old.data_dir, "-R")
        old.restart()
        self.follow()


def as_owner(server: embedded.EmbeddedServer) -> dict[str, Any]:
    """Arguments to run a program as the user whom a server's data belong to."""
    return {
        "cwd": str(server.socket_dir),
        "env": embedded._environment(),
        **embedded._Account.choose().popen(),
    }


def freeze(server: embedded.EmbeddedServer) -> None:
    """Stop every process of a server: it neither answers nor goes away."""
    for pid in processes(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def resume(server: embedded.EmbeddedServer) -> None:
    """Let it go on."""
    for pid in reversed(processes(server)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
