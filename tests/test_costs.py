"""What the functions cost in pages, log and rows, and that it does not grow with the tables.

See tests/costs. Where a change makes a call dearer, or cheaper, these fail until somebody has
looked: ``python -m tests.costs --write`` keeps the new figures, and the change shows what they are.

Broken by hand, each seen red: one more index that every record writes (kept: records), a look
at the open batches that orders them by no index (more where there is more), a claim that asks
for all that waits (more; sorted), offers locked that are not served (kept: locked); claims without
the marks of offers, offers that keep their ids, all places of a job's offers looked at when it is
served, withdrawn or offered again (an old snapshot).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pyjobs import embedded, migrate
from tests import costs
from tests.costs.__main__ import SIZE
from tests.support.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = 4 * SIZE
# What a sort or a hash may hold: what one call was given, and not what is there.
FEW = 350
NUMBERS = "(select jsonb_agg(i) from generate_series(1, {}) i)"


@pytest.fixture(scope="module")
def server() -> Iterator[embedded.EmbeddedServer]:
    """A server that does nothing by itself."""
    settings = {**embedded.THROWAWAY, "autovacuum": "off"}
    with embedded.server(settings=settings) as started:
        yield started


@pytest.fixture(scope="module")
def tables(server) -> Callable[[int], psycopg.Connection[Any]]:
    """A superuser's session in a database of its own."""

    def make(size: int) -> psycopg.Connection[Any]:
        name = f"costs_{size}"
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute(f"create database {name}".encode())
        url = psycopg.conninfo.make_conninfo(server.url(), dbname=name)
        migrate.migrate(url)
        return psycopg.connect(url, autocommit=True)

    return make


@pytest.fixture(scope="module")
def small(tables):
    with tables(SIZE) as conn:
        yield conn, costs.all_costs(conn, SIZE)


@pytest.fixture(scope="module")
def large(tables):
    with tables(LARGE) as conn:
        yield conn, costs.all_costs(conn, LARGE)


def test_each_call_costs_what_it_did(small):
    conn, now = small
    was = costs.kept()
    if conn.info.server_version // 10000 != costs.VERSION:
        # Pages and log are the server's own; what is written and locked is not.
        was = {n: costs.Cost(**{**vars(now[n]), "written": c.written, "locked": c.locked})
               for n, c in was.items()}  # fmt: skip
    assert costs.differences(was, now) == []


def test_no_call_costs_more_where_there_is_more(small, large):
    before, after = small[1], large[1]
    dearer = [
        f"{name}: {after[name].pages} pages, {before[name].pages} in a quarter of the tables"
        for name in before
        if name not in costs.GROWS
        and after[name].pages > 1.25 * before[name].pages + costs.BOUNDED.get(name, 8)
    ]
    assert dearer == []
    for name in before.keys() - costs.GROWS:
        assert abs(after[name].written - before[name].written) <= 1, name


def test_no_call_reads_a_whole_table_or_sorts_more_than_it_was_given(large):
    conn, _ = large
    wrong = []
    for name, call in costs.calls(LARGE).items():
        if name in costs.GROWS:
            continue
        found = costs.nodes(conn, call)
        assert found, "no plan was seen"
        for node in found:
            rows = node.get("Actual Rows", 0) * node.get("Actual Loops", 1)
            looked_at = rows + node.get("Rows Removed by Filter", 0) * node.get("Actual Loops", 1)
            if node["Node Type"] == "Seq Scan" and looked_at > FEW:
                wrong.append(f"{name}: the whole of {node['Relation Name']}")
            if node["Node Type"] in {"Sort", "Hash", "Materialize"} and rows > FEW:
                wrong.append(f"{name}: {node['Node Type']} of {rows:.0f} rows")
            elif looked_at - rows > FEW:
                wrong.append(f"{name}: looks through {node.get('Index Name')}")
    assert sorted(set(wrong)) == []


def entries(conn: psycopg.Connection[Any], call: str) -> int:
    """How many index entries a call reads, dead ones too. Nothing of it is left."""
    read = (
        "select sum(pg_stat_get_xact_tuples_returned(indexrelid))::int from pg_index"
        " where indrelid in (select oid from pg_class"
        " where relnamespace = 'pyjobs_internal'::regnamespace)"
    )
    conn.execute("begin")
    before = conn.execute(read.encode()).fetchone()
    conn.execute(f"select * from pyjobs.{call}".encode())
    after = conn.execute(read.encode()).fetchone()
    conn.execute("rollback")
    return int(after[0] - before[0])  # type: ignore[index]


def test_no_call_costs_more_after_many_under_an_old_snapshot(tables):
    """Nothing that has died since can be removed: it must not lie where a call looks."""
    with tables(1) as conn, psycopg.connect(conn.info.dsn) as reader:
        Calls(conn).mark_every_claim()
        conn.execute("set enable_seqscan = off")
        # Enough that no index gets a level more.
        for _ in range(3):
            conn.execute(f"select pyjobs.enqueue_job('turn', {NUMBERS.format(1000)})".encode())
        conn.execute(f"select pyjobs.enqueue_jobs('small', {NUMBERS.format(2000)})".encode())
        conn.execute("select pyjobs.enqueue_job('refilled', '[]', seal => false)")
        for _ in range(5):
            conn.execute("select from pyjobs.claim_jobs('w', '{small}', 200)")
        conn.execute("vacuum analyze")
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select from pyjobs.job")
        calls = {
            "of many in turn": "claim_next_job('turn', '{turn}')",
            "of small ones": "claim_next_job('small', '{small}')",
            "of sets": "claim_jobs('small', '{small}', 20)",
            "of sets in turn": "claim_jobs('turn', '{turn}', 3)",
            "of all": "claim_next_job('all', '{turn,small,refilled,none}')",
            "enqueue": "enqueue_job('small')",
            "refill": "add_items((select id from pyjobs.job where queue = 'refilled'), '[1]')",
            "the last": "claim_next_job('refilled', '{refilled}')",
        }
        took = []
        explained = []
        for _ in range(2):
            for _ in range(150):
                conn.execute("select pyjobs.enqueue_job('small')")
                conn.execute(f"select pyjobs.{calls['refill']}".encode())
                for queue in ("small", "turn", "refilled"):
                    conn.execute(
                        "select pyjobs.record_batch(batch_id, lease_epoch)"
                        " from pyjobs.claim_next_job(%s, %s)",
                        [queue, [queue]],
                    )
            found = {}
            for name, call in calls.items():
                if name == "the last":
                    conn.execute(f"select pyjobs.{calls['refill']}".encode())
                found[name] = costs.measure(conn, call).pages
                found[f"{name}, entries"] = entries(conn, call)
            conn.execute(f"select from pyjobs.{calls['the last']}".encode())
            took.append(found)
            explained.append(
                entries(conn, "explain_job((select id from pyjobs.job where queue = 'refilled'))")
            )
    # Once for each question about leases, and not for what waits.
    assert explained[1] - explained[0] < 2.2 * 150
    few, many = took
    assert {name: pages for name, pages in many.items() if pages > 1.1 * few[name] + 8} == {}
