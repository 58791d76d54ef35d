"""A standby that is promoted under load: nothing acknowledged is lost, and workers go on.

The primary's commits wait for the standby. What was acknowledged, to whom and when, is kept in a
file outside of both. Whoever promotes must first make sure that the old primary is gone: that is
not the queue's to do, and the tests do it as a cluster manager would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import pyjobs
from tests.beyond.support.load import TABLES, Load
from tests.beyond.support.pair import DATABASE, Pair, freeze, resume
from tests.beyond.support.verify import wrong_about
from tests.support import wait_until
from tests.support.calls import Calls
from tests.support.cluster import _memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyjobs.embedded import EmbeddedServer

WORKERS = {"sync": "sync", "async": "async", "raw": "raw"}
PRODUCERS = {"producer": "producer", "client": "client producer"}


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair(memory=_memory()) as made:
        with psycopg.connect(made.dsn, autocommit=True) as conn:
            conn.execute(TABLES.encode())
        yield made


@pytest.fixture
def load(pair, tmp_path) -> Iterator[Load]:
    made = Load(pair.dsn_with(connect_timeout=2), tmp_path)
    yield made
    made.close()


def go_on(load: Load, wanted: int, *producers: str, begun: int | None = None) -> None:
    """Wait until each worker and producer has that many more acknowledgements, all alive.

    ``begun``: from that entry of the ledger on, by default from here.
    """
    if begun is None:
        begun = len(load.ledger.read())

    def all_have() -> bool:
        assert load.dead() == []
        counts = dict.fromkeys([*WORKERS, *(producers or PRODUCERS)], 0)
        for entry in load.ledger.read()[begun:]:
            counts[entry["who"]] += entry["what"] in ("recorded", "enqueued")
        return all(n >= (wanted if who in WORKERS else 2) for who, n in counts.items())

    wait_until(all_have, f"{wanted} more results by each worker", timeout=90)


def ends_well(pair: Pair, load: Load, *producers: str) -> None:
    """No more jobs; those that there are come to their end, and all agrees."""
    load.end(*(producers or PRODUCERS))
    with psycopg.connect(pair.dsn, autocommit=True) as conn:
        calls = Calls(conn)
        wait_until(
            lambda: (
                not calls.value("select count(*) from pyjobs.job where finished_at is null")
                or load.dead()
            ),
            "every job has ended",
            timeout=60,
        )
        assert load.dead() == []
        load.end()
        assert wrong_about(conn, load.ledger) == []
        deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
        assert calls.value(deadlocks) == 0


def test_nothing_acknowledged_is_lost_when_the_primary_dies_twice(pair, load):
    """There and, with the old primary brought back as a standby, back again."""
    for kind, names in ((WORKERS, WORKERS), (PRODUCERS, PRODUCERS)):
        for name in names:
            load.start(kind[name], name)
    go_on(load, 20)
    pids = {name: load.pid(name) for name in (*WORKERS, *PRODUCERS)}
    pair.primary.kill()
    pair.promote()
    go_on(load, 20)
    pair.rejoin()
    go_on(load, 10)
    pair.primary.kill()
    pair.promote()
    go_on(load, 20)
    # The same processes: nobody was started again.
    assert {e["pid"] for e in load.ledger.read()} == set(pids.values())
    ends_well(pair, load)


def waits_for_the_standby(server: EmbeddedServer, conn: psycopg.Connection[Any]) -> None:
    with psycopg.connect(server.url(), autocommit=True) as admin:
        wait_until(
            lambda: admin.execute(
                "select from pg_stat_activity where wait_event = 'SyncRep' and pid = %s",
                [conn.info.backend_pid],
            ).fetchall(),
            "a commit waits for the standby",
        )


def test_clients_of_a_primary_that_hangs_go_on_when_it_is_fenced(pair, load):
    """Its kernel lives and acknowledges every packet, so that no time-out of TCP notices.

    New sessions pass it by after connect_timeout; those that it has are freed by the fence.
    """
    for name, kind in WORKERS.items():
        load.start(kind, name)
    load.start("producer", "producer")
    go_on(load, 10, "producer")
    freeze(pair.primary)
    pair.promote()
    with pyjobs.Client(pair.dsn_with(connect_timeout=2)) as client:
        assert client.enqueue_job("default", [1]) > 0
    begun = len(load.ledger.read())
    pair.standby.kill()  # works on a stopped process as well
    go_on(load, 10, "producer", begun=begun)
    ends_well(pair, load, "producer")


def test_an_old_primary_that_comes_back_can_acknowledge_nothing(pair, background):
    """Its commits wait for a standby that it has no more: what it takes in it keeps to itself."""
    only_old = f"host=127.0.0.1 port={pair.first.port} dbname={DATABASE} user=app password=app"
    with psycopg.connect(only_old, autocommit=True) as conn:
        calls = Calls(conn)
        job = calls.enqueue(items=1)
        (batch,) = calls.claim(job)
        freeze(pair.first)
        pair.promote()
        resume(pair.first)
        late = background(calls.record, batch)
        waits_for_the_standby(pair.first, conn)
        with psycopg.connect(pair.dsn_with(load_balance_hosts="disable"), autocommit=True) as other:
            # Both take writes now: the first that is asked is taken. That is why it is fenced.
            assert other.info.port == pair.first.port
            assert Calls(other).status(job) == "STARTED"
        with psycopg.connect(pair.second.url(DATABASE), autocommit=True) as other:
            assert Calls(other).status(job) == "STARTED"
        pair.first.kill()
        with pytest.raises(psycopg.OperationalError):
            late.result(20)
    with psycopg.connect(pair.dsn, autocommit=True) as conn:
        calls = Calls(conn)
        assert calls.record(batch)["job_done"]
        assert calls.status(job) == "SUCCESS"


def test_a_cancelled_wait_for_the_standby_is_an_acknowledgement(pair, background):
    """PostgreSQL's own gap: pg_cancel_backend answers the commit with success, and a warning."""
    pair.second.kill()
    notices = []
    dsn = f"host=127.0.0.1 port={pair.first.port} dbname={DATABASE} user=app password=app"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.add_notice_handler(lambda diag: notices.append(diag.message_primary))
        # No time-out of a statement reaches the commit.
        conn.execute("set statement_timeout = '1s'")
        call = background(Calls(conn).enqueue)
        waits_for_the_standby(pair.first, conn)
        with psycopg.connect(pair.first.url(), autocommit=True) as admin:
            admin.execute("select pg_cancel_backend(%s)", [conn.info.backend_pid])
        assert call.result(20) > 0
    assert notices == ["canceling wait for synchronous replication due to user request"]


def test_ids_stay_unique_over_a_promotion(pair):
    with psycopg.connect(pair.dsn, autocommit=True) as conn:
        before = [Calls(conn).enqueue(items=3) for _ in range(40)]
    pair.primary.kill()
    pair.promote()
    with psycopg.connect(pair.dsn, autocommit=True) as conn:
        calls = Calls(conn)
        after = [calls.enqueue(items=3) for _ in range(40)]
        assert not {*before} & {*after}
        assert min(after) > max(before)
        assert calls.value("select count(*) = max(id) - min(id) + 1 from pyjobs.batch") is False
        for job in before + after:
            calls.finish(job)
        assert calls.audit() == []
