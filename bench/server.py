"""The server that is measured, and what a workload does with it."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import sql

import pyjobs.migrate
from bench import pgbench
from pyjobs.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

BARE = Path(__file__).parent / "sql" / "bare.sql"

#: As somebody would set a server of this size who read the manual: durable, and with room for WAL.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "max_connections": "300",
}

#: A file system that forgets, on which fsync costs nothing.
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


class Bench:
    """A server of one's own, started on disk and removed at the end.

    `database()` gives a fresh database that has schema `pyjobs` and the bare tables; `template()`
    one that was filled once and is copied for each measurement.
    """

    def __init__(
        self, folder: str | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """Take a folder for the data, on a disk: ValueError where it lies in memory."""
        folder = folder or tempfile.gettempdir()
        kind = file_system(folder)
        if kind in IN_MEMORY:
            raise ValueError(f"{folder} is in memory ({kind}), where fsync is free: name another")
        self.settings = SETTINGS | dict(settings or {})
        self.folder = folder
        self.server = EmbeddedServer(settings=self.settings, temp_dir=folder)
        self._templates: dict[str, str] = {}
        self._number = 0

    def __enter__(self) -> Self:
        self.server.start()
        try:
            self._make_base()
        except BaseException:
            self.server.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.stop()

    def _make_base(self) -> None:
        with self.admin() as admin:
            admin.execute("create database base")
        url = self.server.url("base")
        pyjobs.migrate.migrate(url)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(BARE.read_text(encoding="utf-8").encode())

    def admin(self) -> psycopg.Connection[Any]:
        """A superuser's session in database postgres."""
        return psycopg.connect(self.server.url(), autocommit=True)

    def connect(self, url: str) -> psycopg.Connection[Any]:
        """A session that commits each statement; statements are prepared when run often."""
        return psycopg.connect(url, autocommit=True)

    def url(self, name: str, *, tcp: bool = False) -> str:
        return self.server.url(name, tcp=tcp)

    @contextmanager
    def database(self, template: str = "base", *, tcp: bool = False) -> Iterator[str]:
        """A copy of `template`, as a URL; dropped at the end.

        A checkpoint precedes it, so that each measurement begins with the same write-ahead log
        before it. tcp: a URL for drivers that know no Unix sockets.
        """
        self._number += 1
        name = f"bench_{self._number}"
        with self.admin() as admin:
            self._copy(admin, name, template)
            admin.execute("checkpoint")
        try:
            yield self.url(name, tcp=tcp)
        finally:
            with self.admin() as admin:
                admin.execute(sql.SQL("drop database {} with (force)").format(_name(name)))

    def template(self, key: str, build: Callable[[str], None]) -> str:
        """A database that `build(url)` has filled, made when it is first asked for."""
        if key not in self._templates:
            name = f"template_{len(self._templates)}"
            with self.admin() as admin:
                self._copy(admin, name, "base")
            build(self.url(name))
            with self.connect(self.url(name)) as conn:
                conn.execute("vacuum analyze")
            self._templates[key] = name
        return self._templates[key]

    @staticmethod
    def _copy(admin: psycopg.Connection[Any], name: str, template: str) -> None:
        admin.execute(
            sql.SQL("create database {} template {} strategy file_copy").format(
                _name(name), _name(template)
            )
        )

    def load(self, url: str, script: str, **options: Any) -> pgbench.Load:
        """Run a script with the server's own load generator; see bench.pgbench.run."""
        return pgbench.run(self.server.bin_dir / "pgbench", url, script, **options)

    def start_load(self, url: str, script: str, **options: Any) -> pgbench.Background:
        """The same beside something else."""
        return pgbench.Background(self.server.bin_dir / "pgbench", url, script, **options)

    def cpu_seconds(self) -> float:
        """What all processes of the server have used so far."""
        pid = self.server.pid
        assert pid is not None
        return sum(cpu_seconds(each) for each in [pid, *children(pid)])

    def versions(self) -> dict[str, str]:
        """PostgreSQL, its settings, and the machine."""
        with self.admin() as admin:
            row = admin.execute("select version()").fetchone()
        assert row is not None
        return {"PostgreSQL": row[0].split(",")[0]}

    def machine(self) -> dict[str, str]:
        load = " ".join(f"{value:.1f}" for value in os.getloadavg())
        return {
            "processor": _processor(),
            "cores": str(os.cpu_count()),
            "memory": f"{_memory_gib():.0f} GiB",
            "system": f"{platform.system()} {platform.release()}",
            "disk": f"{file_system(self.folder)} ({self.folder})",
            "load before": load,
        }


def _name(name: str) -> sql.Identifier:
    return sql.Identifier(name)


def file_system(folder: str) -> str:
    """The kind of the file system that holds a folder; `unknown` where nobody says."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    path = str(Path(folder).resolve())
    for line in mounts:
        _, where, what, *_ = line.split()
        inside = path == where or path.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, kind = where, what
    return kind


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its ended children; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        # Its own from its clock (clock_getcpuclockid), in nanoseconds: the file has hundredths of
        # a second, and of a hundred processes that hardly do anything that is all noise.
        own = time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return own + sum(int(value) for value in fields[13:15]) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "unknown")


def _memory_gib() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2**30
