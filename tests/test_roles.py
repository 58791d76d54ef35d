"""Who may do what. Nobody but the owner reaches a table, and nothing is open to PUBLIC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors

from tests.support.calls import Calls
from tests.support.cluster import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable

    Connection = psycopg.Connection[Any]

PRODUCER = {"enqueue_job", "enqueue_jobs", "add_items", "seal_job", "release_job"}
WORKER = {
    "claim_next_job",
    "claim_next_batch",
    "claim_jobs",
    "record_batch",
    "record_and_claim",
    "record_batches",
    "extend_lease",
    "release_batch",
    "report_refused",
}
OPERATOR = {
    "cancel_job",
    "finalize_job",
    "retry_job",
    "quarantine_job",
    "resolve_job",
    "pause_job",
    "resume_job",
    "pause_queue",
    "resume_queue",
    "set_priority",
    "reap",
    "purge_jobs",
}
READER = {"explain_job", "audit_job", "job_history", "queue_stats", "active_workers"}
EVERYBODY = {"job_progress"}
MAY = {
    "producer": PRODUCER | EVERYBODY,
    "worker": WORKER | EVERYBODY | {"reap_leases"},
    "operator": PRODUCER | OPERATOR | READER | EVERYBODY | {"reap_leases"},
    "reader": READER | EVERYBODY,
}
RELATIONS = {
    "producer": set(),
    "worker": set(),
    "operator": {"job", "batch", "refused"},
    "reader": {"job", "batch", "refused"},
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_call_what_is_its_own_and_nothing_else(db: Connection, role: str) -> None:
    """Over all functions of both schemas, as the catalogue has them."""
    may = {
        name
        for (name,) in db.execute(
            "select case when n.nspname = 'pyjobs' then p.proname::text"
            "   else format('%%s.%%s', n.nspname, p.proname) end"
            " from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
            " where n.nspname in ('pyjobs', 'pyjobs_internal', 'pyjobs_deploy')"
            " and has_schema_privilege(%(role)s, n.oid, 'usage')"
            " and has_function_privilege(%(role)s, p.oid, 'execute')",
            {"role": f"pyjobs_{role}"},
        ).fetchall()
    }
    assert may == MAY[role]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_the_relations_that_are_its_own_and_writes_none(
    db: Connection, role: str
) -> None:
    """Over all tables, views and sequences of the project's schemas."""
    rights = db.execute(
        "select n.nspname, c.relname, r.privilege"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate'])"
        "   r (privilege)"
        " where n.nspname like 'pyjobs%%' and c.relkind in ('r', 'v', 'p', 'm')"
        " and has_table_privilege(%s, c.oid, r.privilege)",
        [f"pyjobs_{role}"],
    ).fetchall()
    assert set(rights) == {("pyjobs", name, "select") for name in RELATIONS[role]}
    sequences = db.execute(
        "select c.oid::regclass::text from pg_class c"
        " where c.relnamespace::regnamespace::text like 'pyjobs%%'"
        " and case when c.relkind = 'S' then has_sequence_privilege(%s, c.oid, 'usage') end",
        [f"pyjobs_{role}"],
    ).fetchall()
    assert sequences == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_turned_away_by_the_server(as_role: Callable[..., Connection], role: str) -> None:
    """Not by the catalogue's word alone: the calls are made."""
    conn = as_role(role)
    for forbidden in (
        "select * from pyjobs_internal.job",
        "update pyjobs_internal.job set status = 'SUCCESS'",
        "insert into pyjobs_internal.queue (name) values ('q')",
        "select pyjobs_internal.transition_job(1, 'SUCCESS', 'me', null)",
        "select nextval('pyjobs_internal.job_id')",
        "create table pyjobs.mine (id int)",
        "create function pyjobs.mine() returns int language sql as 'select 1'",
        "truncate pyjobs_internal.batch",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            conn.execute(forbidden)


def test_nothing_is_open_to_public(db: Connection) -> None:
    """No function, no relation, no schema."""
    assert (
        db.execute(
            "select p.oid::regprocedure::text from pg_proc p"
            " join pg_namespace n on n.oid = p.pronamespace,"
            " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
            " where n.nspname in ('pyjobs', 'pyjobs_internal') and a.grantee = 0"
        ).fetchall()
        == []
    )
    assert (
        db.execute(
            "select n.nspname from pg_namespace n,"
            " aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a"
            " where n.nspname like 'pyjobs%' and a.grantee = 0"
        ).fetchall()
        == []
    )


def test_every_public_function_runs_as_its_owner_with_a_pinned_search_path(db: Connection) -> None:
    """And the owner is no superuser."""
    loose = db.execute(
        "select p.oid::regprocedure::text from pg_proc p"
        " where p.pronamespace = 'pyjobs'::regnamespace"
        " and not (p.prosecdef and coalesce(p.proconfig, '{}') && "
        "   array['search_path=pg_catalog, pg_temp'])"
    ).fetchall()
    assert loose == []
    superusers = db.execute(
        "select p.oid::regprocedure::text from pg_proc p join pg_roles r on r.oid = p.proowner"
        " where p.pronamespace::regnamespace::text like 'pyjobs%' and r.rolsuper"
    ).fetchall()
    assert superusers == []


@pytest.mark.parametrize("view", ["job", "batch", "refused"])
def test_the_relations_cannot_be_written(db: Connection, view: str) -> None:
    """Not even by the owner."""
    Calls(db).finish(Calls(db).enqueue("q"))
    for statement in (
        f"delete from pyjobs.{view}",
        f"update pyjobs.{view} set job_id = 1"
        if view != "job"
        else "update pyjobs.job set run = 2",
    ):
        with pytest.raises(psycopg.Error):
            db.execute(statement.encode())


def test_look_alikes_in_the_callers_path_are_not_called(
    db: Connection, admin: Connection, as_role: Callable[..., Connection]
) -> None:
    """Functions, operators and temporary tables that shadow what the functions use."""
    Calls(db).enqueue("q", [1, 2])
    admin.execute("create schema trap; grant all on schema trap to public")
    worker = as_role("worker")
    worker.execute(
        "create function trap.now() returns timestamptz language plpgsql as"
        " $$ begin raise 'trapped'; end $$;"
        "create function trap.clock_timestamp() returns timestamptz language plpgsql as"
        " $$ begin raise 'trapped'; end $$;"
        "create function trap.jsonb_array_length(jsonb) returns int language plpgsql as"
        " $$ begin raise 'trapped'; end $$;"
        "create temporary table job (id bigint);"
        "create temporary table batch (id bigint, state text);"
        "set search_path = trap, pg_temp, pg_catalog"
    )
    claimed = worker.execute("select batch_id, lease_epoch from pyjobs.claim_next_job('w', '{q}')")
    batch = claimed.fetchone()
    assert batch is not None
    worker.execute("select pyjobs.record_batch(%s, %s, counters => '{\"n\": 1}')", batch)
    assert Calls(db).value("select count(*) from pyjobs.batch where state = 'recorded'") == 1


def test_each_role_does_its_part_of_a_job(as_role: Callable[..., Connection]) -> None:
    """A producer, a worker, an operator and a reader, each a member of one role alone."""
    job = Calls(as_role("producer")).enqueue("q", [1])
    worker = Calls(as_role("worker"))
    (batch,) = worker.ask("w", "q")
    assert worker.record(batch, failed=[0])["job_status"] == "FAILURE"
    operator = Calls(as_role("operator"))
    assert operator.value("select pyjobs.retry_job(%s)", job) == "RETRY"
    assert operator.value("select pyjobs.cancel_job(%s, 'enough')", job) == "REVOKED"
    reader = Calls(as_role("reader"))
    assert reader.status(job) == "REVOKED"
    assert reader.audit(job) == []
    who = [
        (row["to_status"], row["session_role"].rsplit("_", 1)[-1]) for row in reader.history(job)
    ]
    assert who[0][1] == "producer"
    assert ("FAILURE", "worker") in who
    assert who[-1] == ("REVOKED", "operator")
