"""A PgBouncer in front of a server, in transaction pooling, as strict as it can be.

After every transaction the server's session is reset (`DISCARD ALL`), so that whoever leaves a
setting, a prepared statement, a temporary table, a lock or a LISTEN there finds nothing of it
again. Without that, and with few clients, a pooler hands the same session to the same client time
and again, and state left there works by accident.

The program is the one that `PYJOBS_PGBOUNCER` names, or one on the PATH, or Debian's package,
unpacked below `.pg/` without being installed. Where none can be had the run fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import conninfo

from pyjobs.embedded import _Account, _free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_CACHE = Path(__file__).parents[2] / ".pg" / "pgbouncer"

SETTINGS: Mapping[str, str] = {
    "pool_mode": "transaction",
    "server_reset_query": "DISCARD ALL",
    "server_reset_query_always": "1",
    # The server's own limit is the one to be met.
    "max_client_conn": "1000",
    "default_pool_size": "40",
    "log_connections": "0",
    "log_disconnections": "0",
}


class NoPoolerError(RuntimeError):
    """No PgBouncer is here, and none could be had."""


class Pooler:
    """A PgBouncer in front of the server that ``dsn`` (a superuser's) names.

    ``through(dsn)`` is a connection string as the given one, through the pooler. ``watchers``
    (names with their passwords) may look at its console, the database `pgbouncer`.
    """

    def __init__(
        self,
        dsn: str,
        settings: Mapping[str, str] | None = None,
        watchers: Mapping[str, str] | None = None,
    ) -> None:
        self._server = {
            key: str(value)
            for key, value in conninfo.conninfo_to_dict(dsn).items()
            if value is not None
        }
        self._dsn = dsn
        self._settings = {**SETTINGS, **(settings or {})}
        self._watchers = dict(watchers or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self.port = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            account = _Account.choose()
            folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix="pyjobs-pool-", dir=account.temp_dir(), ignore_cleanup_errors=True
                    )
                )
            )
            account.give(folder)
            self.log = folder / "pgbouncer.log"
            program, libraries = reachable(account, folder)
            self.port = _free_port()
            self._write(folder, account)
            self._process = subprocess.Popen(
                [program, "-q", folder / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PATH": os.defpath, **({"LD_LIBRARY_PATH": libraries} if libraries else {})},
                start_new_session=True,
                **account.popen(),
            )
            stack.callback(self._end, self._process)
            self._await()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def through(self, dsn: str) -> str:
        """As that connection string, through the pooler."""
        parameters = conninfo.conninfo_to_dict(dsn)
        return conninfo.make_conninfo("", **{**parameters, "host": "127.0.0.1", "port": self.port})

    def _write(self, folder: Path, account: _Account) -> None:
        user = self._server["user"]
        password = self._server.get("password", "")
        where = {name: self._server[name] for name in ("host", "port") if name in self._server}
        target = " ".join(f"{name}={value}" for name, value in where.items())
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(folder / "users"),
            # Whoever the server knows, the pooler knows.
            "auth_user": user,
            "auth_query": "select usename, passwd from pg_catalog.pg_shadow where usename = $1",
            "stats_users": ", ".join(self._watchers),
            "logfile": str(self.log),
            **self._settings,
        }
        text = f"[databases]\n* = {target}\n[pgbouncer]\n"
        text += "".join(f"{name} = {value}\n" for name, value in settings.items())
        known = {user: password, **self._watchers}
        users = "".join(f'"{name}" "{secret}"\n' for name, secret in known.items())
        for name, content in (("users", users), ("pgbouncer.ini", text)):
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(content)
            account.give(path)

    def _await(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                    return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = self.log.read_text() if self.log.exists() else "it said nothing"
                    raise NoPoolerError(f"PgBouncer did not start ({error}): {log}") from error
            time.sleep(0.01)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()  # at once, without waiting for clients
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def server_pid(conn: psycopg.Connection[Any], console_dsn: str) -> int | None:
    """The server process that works for a pooled connection at the moment, if one does.

    The process id that the connection itself knows is one of the pooler's making.
    """
    with socket.socket(fileno=os.dup(conn.fileno())) as mine:
        port = mine.getsockname()[1]
    with psycopg.connect(console_dsn, autocommit=True) as console:
        clients = _show(console, b"show clients")
        servers = _show(console, b"show servers")
    links = [row["link"] for row in clients if row["port"] == port and row["link"]]
    return next((row["remote_pid"] for row in servers if row["ptr"] in links), None)


def _show(console: psycopg.Connection[Any], what: bytes) -> list[dict[str, Any]]:
    cursor = console.execute(what)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# The program


def reachable(account: _Account, folder: Path) -> tuple[str, str]:
    """A PgBouncer that this user can run, and where its libraries are ("" for the system's)."""
    program, libraries = find_program()
    if account.can_reach(program.parent):
        return str(program), libraries
    copy = folder / "program"
    shutil.copytree(program.parent, copy)
    copy.chmod(0o755)
    return str(copy / program.name), str(copy) if libraries else ""


def find_program() -> tuple[Path, str]:
    """PgBouncer, and the folder of libraries that it needs beside the system's, or ""."""
    named = os.environ.get("PYJOBS_PGBOUNCER")
    if named:
        return Path(named).absolute(), ""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found:
        return Path(found), ""
    if not (_CACHE / "pgbouncer").exists():
        _CACHE.parent.mkdir(exist_ok=True)
        # Several processes may look for it at once.
        with _CACHE.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (_CACHE / "pgbouncer").exists():
                _download()
    return _CACHE / "pgbouncer", str(_CACHE)


def _download() -> None:
    """Unpack Debian's package, and those of libraries that are missing, into the cache."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoPoolerError(
            "no PgBouncer here, and no apt-get to fetch it with: install the package pgbouncer,"
            " or name the program in PYJOBS_PGBOUNCER"
        )
    with tempfile.TemporaryDirectory(prefix="pyjobs-apt-") as name:
        folder = Path(name)
        apt = _Apt(folder)
        apt.fetch("pgbouncer")
        wanted = [word for word in apt.dependencies("pgbouncer") if word.startswith("lib")]
        apt.fetch(*(word for word in wanted if word != "libc6"))
        for package in folder.glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(folder / "unpacked"))
        ready = folder / "ready"
        ready.mkdir()
        for program in (folder / "unpacked").rglob("pgbouncer"):
            if program.is_file() and os.access(program, os.X_OK) and "sbin" in program.parts:
                shutil.copy2(program, ready)
        # The system's own libraries, where it has them, fit each other.
        missing = _missing(ready / "pgbouncer")
        for library in (folder / "unpacked").rglob("lib*.so.*"):
            if library.name in missing:
                shutil.copy2(library, ready)
        still = _missing(ready / "pgbouncer", str(ready))
        if still:
            raise NoPoolerError(f"PgBouncer was fetched and lacks {', '.join(sorted(still))}")
        shutil.rmtree(_CACHE, ignore_errors=True)
        shutil.copytree(ready, _CACHE)


class _Apt:
    """apt-get for somebody who need not be root, and whose machine need not know the lists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options: list[str] = []

    def fetch(self, *packages: str) -> None:
        if not packages:
            return
        try:
            self._apt("apt-get", "download", *packages)
        except NoPoolerError:
            if self._options:
                raise
            # The machine has no lists of packages, or old ones: fetch some of our own.
            for name in ("lists/partial", "cache/archives/partial"):
                (self._folder / name).mkdir(parents=True)
            self._options = [
                *("-o", f"Dir::State::lists={self._folder}/lists"),
                *("-o", f"Dir::Cache={self._folder}/cache"),
            ]
            self._apt("apt-get", "update")
            self._apt("apt-get", "download", *packages)

    def dependencies(self, package: str) -> list[str]:
        text = self._apt("apt-cache", "depends", "--important", package)
        return re.findall(r"Depends: ([a-z0-9.+-]+)$", text, flags=re.MULTILINE)

    def _apt(self, program: str, command: str, *words: str) -> str:
        try:
            return _run(program, "-q", *self._options, command, *words, cwd=self._folder)
        except subprocess.CalledProcessError as error:
            raise NoPoolerError(
                f"no PgBouncer here, and {program} {command} {' '.join(words)} failed: "
                f"{error.stdout}{error.stderr}"
            ) from error


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=cwd, env=environment
    )
    return done.stdout


def _missing(program: Path, libraries: str = "") -> set[str]:
    environment = {"PATH": os.defpath, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
    done = subprocess.run(
        ["ldd", program], check=True, capture_output=True, text=True, env=environment
    )
    return set(re.findall(r"^\s*(\S+) => not found", done.stdout, flags=re.MULTILINE))


@contextlib.contextmanager
def pooled(dsn: str, **settings: str) -> Iterator[Pooler]:
    """A pooler for a ``with`` statement."""
    with Pooler(dsn, settings) as pooler:
        yield pooler
