"""The server of a test run, and the databases made on it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import conninfo, sql

from pyjobs import embedded, migrate
from tests.support.pooler import Pooler

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = ("producer", "worker", "operator", "reader")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A server with a migrated template database.

    ``user`` is a superuser. ``owner`` owns the databases and the schema and is none; ``logins``
    maps each of the four roles to a login role that is its member. All share one password.
    The field names are those that pytest-postgresql asks for.
    """

    host: str
    port: int
    user: str
    password: str
    maintenance_dbname: str
    template_dbname: str
    token: str
    login_password: str
    psql_path: str
    options: str = ""
    # Where a PgBouncer stands before the server, if tests are to go through one; else 0.
    pooler_port: int = 0

    @property
    def owner(self) -> str:
        return f"pj_{self.token}_owner"

    @property
    def logins(self) -> dict[str, str]:
        return {role: f"pj_{self.token}_{role}" for role in ROLES}

    def dsn(self, dbname: str | None = None, user: str | None = None) -> str:
        """A connection string, of the superuser unless a user is named."""
        return conninfo.make_conninfo(
            host=self.host,
            port=self.port,
            dbname=dbname or self.maintenance_dbname,
            user=user or self.user,
            password=self.password if user in (None, self.user) else self.login_password,
        )

    def pooled_dsn(self, dbname: str, user: str) -> str:
        """The same through the pooler."""
        return conninfo.make_conninfo(
            self.dsn(dbname, user), host="127.0.0.1", port=self.pooler_port
        )

    @property
    def console_dsn(self) -> str:
        """The pooler's console, where it says who is connected to whom."""
        return self.pooled_dsn("pgbouncer", self.owner)


@dataclasses.dataclass(frozen=True)
class Database:
    """One database on the cluster."""

    cluster: Cluster
    name: str
    pooled: bool = False

    @property
    def dsn(self) -> str:
        """As its owner, who is no superuser."""
        return self._dsn(self.cluster.owner)

    @property
    def admin_dsn(self) -> str:
        """As the superuser."""
        return self.cluster.dsn(self.name)

    def dsn_of(self, role: str) -> str:
        """As a member of ``pyjobs_<role>``."""
        return self._dsn(self.cluster.logins[role])

    def _dsn(self, user: str) -> str:
        connect = self.cluster.pooled_dsn if self.pooled else self.cluster.dsn
        return connect(self.name, user)


@contextlib.contextmanager
def provide(url: str | None, *, pooler: bool = False) -> Iterator[Cluster]:
    """A cluster on the server of the URL, or on one of our own; cleaned up afterwards.

    With ``pooler`` a PgBouncer stands before it.
    """
    with contextlib.ExitStack() as stack:
        if url:
            reached = url
            made = _on_server(url, _find_psql())
        else:
            server = stack.enter_context(
                embedded.server(settings=embedded.THROWAWAY, temp_dir=_memory())
            )
            reached = server.url(tcp=True)
            made = _on_server(server.url(), server.psql_path)
        cluster = stack.enter_context(made)
        if pooler:
            watchers = {cluster.owner: cluster.login_password}
            port = stack.enter_context(Pooler(reached, watchers=watchers)).port
            cluster = dataclasses.replace(cluster, pooler_port=port)
        yield cluster


def _memory() -> str | None:
    """A folder in memory, where there is one with room: a database is some 330 files.

    On a disk they took two thirds of the time of the whole run.
    """
    folder = "/dev/shm"
    with contextlib.suppress(OSError):
        if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2 << 30:
            return folder
    return None


def _find_psql() -> str:
    found = shutil.which("psql")
    if found:
        return found
    return embedded.EmbeddedServer().psql_path


@contextlib.contextmanager
def _on_server(url: str, psql_path: str) -> Iterator[Cluster]:
    with psycopg.connect(url, autocommit=True) as admin:
        info = admin.info
        cluster = Cluster(
            host=info.host,
            port=info.port,
            user=info.user,
            password=info.password,
            maintenance_dbname=info.dbname,
            template_dbname="",
            token=secrets.token_hex(3),
            login_password=secrets.token_urlsafe(16),
            psql_path=psql_path,
        )
        template = f"pj_{cluster.token}"
        try:
            _prepare(admin, cluster, template)
            yield dataclasses.replace(cluster, template_dbname=template)
        finally:
            _clean_up(admin, cluster)


def _prepare(admin: psycopg.Connection[Any], cluster: Cluster, template: str) -> None:
    # The part that needs an administrator; the rest is done by the owner, as people do it.
    admin.execute(migrate.roles_sql().encode() or b"select 1")
    for login in (cluster.owner, *cluster.logins.values()):
        admin.execute(
            sql.SQL("create role {} login password {}").format(
                sql.Identifier(login), sql.Literal(cluster.login_password)
            )
        )
    for role, login in cluster.logins.items():
        admin.execute(
            sql.SQL("grant {} to {}").format(
                sql.Identifier(f"pyjobs_{role}"), sql.Identifier(login)
            )
        )
    admin.execute(
        sql.SQL("create database {} owner {}").format(
            sql.Identifier(template), sql.Identifier(cluster.owner)
        )
    )
    migrate.migrate(
        cluster.dsn(template, cluster.owner), root=os.environ.get("PYJOBS_TEST_ROOT") or None
    )


def _clean_up(admin: psycopg.Connection[Any], cluster: Cluster) -> None:
    names = admin.execute(
        "select datname from pg_database where starts_with(datname, %s)", [f"pj_{cluster.token}"]
    ).fetchall()
    for (name,) in names:
        admin.execute(sql.SQL("alter database {} is_template false").format(sql.Identifier(name)))
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
    for login in (*cluster.logins.values(), cluster.owner):
        admin.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(login)))
