"""One server for a run, one fresh database for a test.

The server is an embedded one, or the one that ``PYJOBS_TEST_URL`` names (a superuser's URL). It is
started by the process that runs pytest, and shared by its workers. A template database is migrated
once; each test that asks for a database gets a copy of it, which takes some 30 ms.

With ``PYJOBS_TEST_POOLER=1`` a PgBouncer stands before it, and all sessions of a test go through it
but the superuser's. Those that cannot are listed in tests/support/direct.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pytest_postgresql import factories

from tests.support import Background, Cluster, Database, direct, wait_for_lock
from tests.support.cluster import provide
from tests.support.sessions import Session, Stops
from tests.support.twins import AsyncTwin, SyncTwin
from tests.support.waiting import POOLED, pid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Connection = psycopg.Connection[tuple[Any, ...]]
    Connect = Callable[..., Connection]

# The copies are named after the process that runs pytest, so that two runs can share a server.
_RUN = os.environ.setdefault("PYJOBS_TEST_RUN", str(os.getpid()))
_SHARED = pytest.StashKey[contextlib.ExitStack]()
_CLUSTER = pytest.StashKey[Cluster]()


def _cluster(config: pytest.Config) -> Cluster:
    """The cluster of this run, started when it is first asked for."""
    if _CLUSTER not in config.stash:
        handed_down = getattr(config, "workerinput", {}).get("cluster")
        if handed_down:
            config.stash[_CLUSTER] = Cluster(**handed_down)
        else:
            stack = config.stash.setdefault(_SHARED, contextlib.ExitStack())
            config.stash[_CLUSTER] = stack.enter_context(
                provide(
                    os.environ.get("PYJOBS_TEST_URL"),
                    pooler=bool(os.environ.get("PYJOBS_TEST_POOLER")),
                )
            )
    return config.stash[_CLUSTER]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the one server to an xdist worker."""
    node.workerinput["cluster"] = dataclasses.asdict(_cluster(node.config))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what this process started."""
    if _SHARED in config.stash:
        config.stash[_SHARED].close()


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Cluster:
    """The server: how to reach it, its roles, its psql."""
    return _cluster(pytestconfig)


_template = factories.postgresql_noproc(depends_on="cluster", dbname=f"pj_copy_{_RUN}")
_copy = factories.postgresql("_template")


@pytest.fixture
def background() -> Iterator[Background]:
    """Run a call in a thread: ``background(call, *args)`` returns a future."""
    calls = Background()
    yield calls
    calls.join()


@pytest.fixture
def admin(_copy: Connection) -> Connection:
    """A superuser's autocommit session in the test's database."""
    _copy.rollback()
    _copy.autocommit = True
    return _copy


@pytest.fixture
def database(admin: Connection, cluster: Cluster, request: pytest.FixtureRequest) -> Database:
    """A fresh, migrated database; owned, as is its schema, by a role that is no superuser."""
    name = admin.info.dbname
    admin.execute(f'alter database "{name}" owner to "{cluster.owner}"'.encode())
    pooled = bool(cluster.pooler_port) and direct.reason(request.node.nodeid) is None
    return Database(cluster, name, pooled=pooled)


@pytest.fixture
def dsn(database: Database) -> str:
    """The connection string of the database's owner."""
    return database.dsn


@pytest.fixture
def connect(database: Database, admin: Connection, background: Background) -> Iterator[Connect]:
    """More sessions: ``connect(role=None, autocommit=True, direct=False, **libpq_arguments)``.

    ``role`` is producer, worker, operator, reader, or None for the owner. ``direct``: past the
    pooler, where tests go through one. They are closed when the test ends; one that still waits for
    something is ended on the server, so that no test hangs.
    """
    opened: list[Connection] = []

    def connect_one(
        role: str | None = None, *, autocommit: bool = True, direct: bool = False, **arguments: Any
    ) -> Connection:
        on = dataclasses.replace(database, pooled=database.pooled and not direct)
        dsn = on.dsn if role is None else on.dsn_of(role)
        options = {
            "application_name": f"test session {len(opened)}",
            "prepare_threshold": None if on.pooled else 5,
            **arguments,
        }
        conn = psycopg.connect(dsn, autocommit=autocommit, **options)
        opened.append(conn)
        if on.pooled:
            POOLED[conn] = database.cluster.console_dsn
        return conn

    yield connect_one
    busy = [
        pid_of(conn)
        for conn in opened
        if not conn.closed and conn.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE
    ]
    if busy:
        admin.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", [busy])
        background.join()
    for conn in opened:
        conn.close()


@pytest.fixture
def db(connect: Connect) -> Connection:
    """The owner's autocommit session."""
    return connect()


@pytest.fixture
def as_role(connect: Connect) -> Connect:
    """``as_role("worker")``: a session of a member of that role, and of nothing else."""
    return connect


@pytest.fixture
def new_session(
    connect: Connect, background: Background, admin: Connection
) -> Callable[[], Session]:
    """Sessions that take their steps in a chosen order (tests/support/sessions.py)."""
    return lambda: Session(connect(), background, admin)


@pytest.fixture
def stops(db: Connection, connect: Connect) -> Stops:
    """Stops functions of pyjobs for sessions that ask for it; its own is no pooler's."""
    return Stops(db, connect(direct=True))


@pytest.fixture(params=[SyncTwin, AsyncTwin], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Iterator[SyncTwin | AsyncTwin]:
    """The synchronous client and worker, and the asynchronous ones, called alike."""
    made: SyncTwin | AsyncTwin = request.param()
    yield made
    made.close()


@pytest.fixture(name="wait_for_lock")
def wait_for_lock_fixture(admin: Connection) -> Callable[..., list[int]]:
    """``wait_for_lock(waiter, blocker=None)``: until that session really waits for a lock."""

    def wait(waiter: Any, blocker: Any = None, timeout: float = 20) -> list[int]:
        return wait_for_lock(admin, waiter, blocker, timeout)

    return wait
