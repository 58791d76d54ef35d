"""A session that is ended from outside (pg_terminate_backend) at a chosen point loses nothing.

What it had begun is rolled back as a whole, and whoever comes next takes it up: nothing is lost,
and nothing counts twice.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.support import wait_until
from tests.support.calls import Calls
from tests.support.sessions import SOON, Session, Stops


@pytest.fixture
def look(db):
    return Calls(db)


@pytest.fixture
def session(connect, background, admin):
    """More sessions of the owner, in autocommit mode."""
    return lambda: Session(connect(), background, admin)


@pytest.fixture
def stops(db, connect):
    return Stops(db, connect(direct=True))


@pytest.fixture
def end(admin):
    """End a session, as an administrator does; until it is gone."""

    def end_one(session: Session) -> None:
        assert admin.execute("select pg_terminate_backend(%s, 20000)", [session.pid]).fetchone()[0]

    return end_one


def test_a_claim_that_is_ended_midway_leaves_its_batch_to_be_claimed(look, session, stops, end):
    job = look.enqueue(items=2)
    doomed = session()
    stops.before("claim_from_job", doomed)
    call = doomed.start(doomed.ask, "w1", "default")
    doomed.waits_for(stops.holder)
    end(doomed)
    with pytest.raises(psycopg.errors.AdminShutdown):
        call.result(SOON)
    assert look.value("select count(*) from pyjobs.batch where state = 'leased'") == 0
    wait_until(lambda: look.ask("w2", "default"), "another is given its work")
    look.finish(job)
    assert look.audit() == []
