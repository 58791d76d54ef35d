"""The storm's verdict finds what it is there to find. `make storm` blows it for an hour."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

from tests.storm import broken, ledger, verdict, weather

ROOT = Path(__file__).parents[1]

# What is done to the tables afterwards, and the check that must notice. ``seen``: a job whose end
# as SUCCESS is in the ledger; ``job`` and ``batch``: ones that were acknowledged.
TAMPERED = {
    "a row of the application is lost": (
        "delete from app.result where ctid = (select min(ctid) from app.result)",
        "every recorded batch has exactly one row of the application, in its run",
    ),
    "a row of the application is there twice": (
        "insert into app.result select * from app.result limit 1",
        "every recorded batch has exactly one row of the application, in its run",
    ),
    "a row of the application belongs to another run": (
        "update app.result set run = run + 1 where ctid = (select min(ctid) from app.result)",
        "every recorded batch has exactly one row of the application, in its run",
    ),
    "a row of the application stayed from a record that was refused": (
        "insert into app.result select batch_id, lease_epoch + 1, job_id, run, found "
        "from app.result limit 1",
        "no other row of the application is there",
    ),
    "an acknowledged record is lost": (
        "update pyjobs_internal.batch set state = 'failed' where id = %(batch)s",
        "every acknowledged record is there, under its lease",
    ),
    "a batch is recorded under a lease that nobody had": (
        "update pyjobs_internal.batch set lease_epoch = 99 where id = "
        "(select min(batch_id) from app.result)",
        "every recorded batch is one that a client meant to record, with its result",
    ),
    "a counter is another": (
        """update pyjobs_internal.batch set counters = '{"found": 77}' where id = """
        "(select min(batch_id) from app.result)",
        "every recorded batch is one that a client meant to record, with its result",
    ),
    "a batch's counters are added to its stage twice": (
        """update pyjobs_internal.stage set counters = '{"found": 77777}' """
        "where ctid = (select min(ctid) from pyjobs_internal.stage where done)",
        "the counters of every such stage are the sums of the application's rows",
    ),
    "a total is off by one": (
        "update pyjobs_internal.stage set total = total + 1 "
        "where ctid = (select min(ctid) from pyjobs_internal.stage where done)",
        "the totals of every stage that is done, of all runs, are those of its batches",
    ),
    "a job is lost": (
        "delete from pyjobs_internal.job where id = %(job)s",
        "every acknowledged job is there",
    ),
    "a job is there twice": (
        "insert into pyjobs_internal.job select (jsonb_populate_record(j, "
        """'{"id": 999999, "dedupe_key": null}')).* from pyjobs_internal.job j limit 1""",
        "every job is one that a client meant to start, once",
    ),
    "a final state became another": (
        "update pyjobs_internal.job set status = 'FAILURE' where id = %(seen)s",
        "a final state that somebody saw is the one that stands",
    ),
    "a job ended and nobody wrote it down": (
        "update pyjobs_internal.job set finished_at = null, status = 'PENDING' where id = %(seen)s",
        "a final state that somebody saw is the one that stands",
    ),
    "an item is there twice": (
        "update pyjobs_internal.batch set items = items || items where id = "
        "(select min(id) from pyjobs_internal.batch where items is not null and run = 1)",
        "no item is in a run twice",
    ),
    "an item is lost": (
        "update pyjobs_internal.batch set items = items - 0 where id = (select min(id) from "
        "pyjobs_internal.batch where items is not null and run = 1 and not emitted)",
        "every item that was given is there once, and no other",
    ),
    "an emitted item is lost": (
        "update pyjobs_internal.batch set items = items - 0 where id = "
        "(select min(id) from pyjobs_internal.batch where run = 1 and emitted)",
        "what a recorded batch emitted is in the next stage of its run, once",
    ),
    "a run began by itself": (
        "update pyjobs_internal.job set run = run + 1 where id = "
        "(select min(id) from pyjobs_internal.job)",
        "no run began without a retry",
    ),
}


def in_the_ledger(conn, folder):
    """A job and a batch that were acknowledged, and a job that was seen to succeed."""
    stands = {
        tuple(row)
        for row in conn.execute("select id, run from pyjobs.job where status = 'SUCCESS'")
    }
    some = {}
    for _, what, kind, fields in ledger.read(folder):
        if (what, kind) == ("acked", "enqueue") and fields["ids"]:
            some["job"] = fields["ids"][0]
        elif (what, kind) == ("acked", "record"):
            some["batch"] = fields["batch"]
        elif (
            (what, kind) == ("saw", "status")
            and fields["status"] == "SUCCESS"
            and (fields["job"], fields["run"]) in stands
        ):
            some["seen"] = fields["job"]
    return some


@pytest.mark.long
def test_a_breeze_leaves_all_in_order_and_its_verdict_sees_what_is_not(database, tmp_path, admin):
    """Some seconds of it, without kills of the server, which is others' too."""
    options = weather.Options(
        minutes=0.07,
        seed=3,
        url=database.admin_dsn,
        folder=tmp_path / "breeze",
        clients={"producer": 2, "worker": 2, "package": 1, "operator": 1, "observer": 1},
        say=lambda _: None,
    )
    found = weather.blow(options)
    assert found.wrong == []
    assert found.counts["client kills"] >= 1
    assert found.counts["sessions ended"] >= 1
    assert found.checked["every acknowledged record is there, under its lease"][0] > 0
    missed = []
    with psycopg.connect(database.admin_dsn) as conn:
        # Past the triggers that refuse such things.
        conn.execute("set session_replication_role = replica")
        conn.execute("alter table pyjobs_internal.job drop constraint job_fits")
        conn.execute("alter table pyjobs_internal.batch drop constraint batch_fits")
        conn.commit()
        some = in_the_ledger(conn, options.folder / "ledger")
        for name, (damage, check) in TAMPERED.items():
            assert conn.execute(damage.encode(), some).rowcount == 1, name
            after = verdict.Verdict()
            verdict.compare(conn, options.folder / "ledger", after)
            if after.checked[check][1] == 0:
                missed.append(name)
            conn.rollback()
    assert missed == []


@pytest.mark.long
def test_every_broken_copy_can_still_be_made():
    for name in broken.NAMES:
        assert broken.options(name)


KILLED = """
import os, signal, sys
from tests.storm.ledger import Ledger

book = Ledger(sys.argv[1], "one")
book.intend("record", batch=1, epoch=2)
book.acked("record", batch=1, epoch=2)
os.write(book._file, b'["acked","rec')  # killed in the middle of it
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_process_wrote_before_it_was_killed_is_read(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    entries = list(ledger.read(tmp_path))
    assert entries == [
        ("one", "intend", "record", {"batch": 1, "epoch": 2}),
        ("one", "acked", "record", {"batch": 1, "epoch": 2}),
    ]


def test_the_servers_log_tells_a_deadlock_of_those_who_cross_from_others(tmp_path):
    log = tmp_path / "server.log"
    log.write_text(
        textwrap.dedent("""\
        00000|1||LOG:  database system is ready to accept connections
        PJ001|7|storm worker|ERROR:  the lease is stale
        40P01|8|storm crossing|ERROR:  deadlock detected
        40P01|8|storm crossing|DETAIL:  Process 8 waits for ShareLock on transaction 1.
        \tProcess 8: /* crossing */ select 1
        \tProcess 9: /* crossing */ select 2
        40P01|8|storm crossing|HINT:  See server log for query details.
        40P01|9|storm worker|ERROR:  deadlock detected
        40P01|9|storm worker|DETAIL:  Process 9 waits for ShareLock on transaction 1; blocked by 7.
        \tProcess 9: select 1
        57P01|5|storm operator|FATAL:  terminating connection due to administrator command
        """)
    )
    told, deadlocks = weather.read_log(log)
    assert told == {"PJ001": 1, "40P01": 2, "57P01": 1}
    assert ["/* crossing */" in text for text in deadlocks] == [True, False]
