"""The test suite's own ground holds."""

from __future__ import annotations

import psycopg
import pytest


@pytest.mark.parametrize("again", [1, 2])
def test_each_test_has_a_database_of_its_own(db, again):
    db.execute("create schema app")
    db.execute("create table app.thing (id int)")


def test_the_owner_is_no_superuser_and_owns_the_schema(db, cluster):
    assert db.execute("select current_setting('is_superuser')").fetchone() == ("off",)
    owners = db.execute(
        "select distinct nspowner::regrole::text from pg_namespace where nspname like 'pyjobs%'"
    ).fetchall()
    assert owners == [(cluster.owner,)]


@pytest.mark.parametrize("role", ["producer", "worker", "operator", "reader"])
def test_a_role_is_a_member_of_one_role_only(as_role, role):
    member_of = as_role(role).execute(
        "select rolname from pg_roles where rolname like 'pyjobs%' and pg_has_role(oid, 'member')"
    )
    assert member_of.fetchall() == [(f"pyjobs_{role}",)]


def test_a_session_that_waits_for_a_lock_is_seen_to(connect, wait_for_lock, background):
    holder, waiter = connect(direct=True), connect()
    holder.execute("select pg_advisory_lock(1)")
    call = background(waiter.execute, "select pg_advisory_lock(1)")
    assert wait_for_lock(waiter, holder) == [holder.info.backend_pid]
    assert not call.done()
    holder.execute("select pg_advisory_unlock(1)")
    call.result(20)
    with pytest.raises(AssertionError, match="waits for a lock"):
        wait_for_lock(waiter, timeout=0.05)


def test_a_session_left_waiting_does_not_hang_the_test(connect, wait_for_lock, background):
    holder, waiter = connect(direct=True), connect()
    holder.execute("select pg_advisory_lock(1)")
    background(waiter.execute, "select pg_advisory_lock(1)")
    wait_for_lock(waiter)


def test_a_call_in_the_background_hands_over_its_error(background, db):
    with pytest.raises(psycopg.errors.DivisionByZero):
        background(db.execute, "select 1 / 0").result(20)
