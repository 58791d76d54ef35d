"""Every race with real sessions, in both directions, decided by the order of steps.

A step of one session that has to wait for another's runs in the background, and the test goes on
when the server says that it really waits for a lock; or it is stopped at a chosen function (see
tests/support/sessions.py). No test waits for a time. After each, the rules are recomputed from the
tables (tests/support/rules.py).

The races that made people repair their job status stand in tests/test_background.py, where they are
run on the unrepaired design too.

Each guard in sql/ was taken out once, and a test seen to fail for it:

record: no epoch or state in the update  refused_when_the_batch_was_leased_again, same_result_twice
record: writes or locks the job's row    recording_one_of_many_writes_and_locks_its_own_row_only
record: no look, or by one rule only     one_of_the_last_two, one_of_the_last_three[cancelling]
look: any open batch counts as quiet     one_of_the_last_two_ends_the_job
look: keeps the lock on what it found    a_look_does_not_hold_the_batch_that_it_found
look: does not wait for those in flight  one_of_the_last_two_ends_the_job
ender: none, or waited for               one_of_the_last_three_of_two_stages
ender: one for both rules                ended_though_a_stage_was_completed_before_it
ender: taken by finalize_job(null)       finalize_without_a_status_does_not_send_a_finisher_home
ender: waits for who waits for him       around_a_cancel, leaves_the_job_to_who_waits, does_not_wait
end: no fresh look after the wait        one_of_the_last_two_ends_the_job
end: the job is not read again           a_cancel_comes_between_the_finishers_look_and_his_end
end: a cancel always counts as settled   while_a_claim_is_in_flight, items_on_their_way_do_not_come
hand-over: none, or keeps nothing        one_of_the_last_three_of_two, last_record_waits_for_a_seal
hand-over: not in cancel                 a_lease_that_ends_during_a_cancel_waits_for_it
hand-over: past a cancel                 a_finisher_of_a_stage_sees_the_cancel
claim or stop: no serving lock           a_cancel_waits_for_a_claim_and_frees_what_it_took
claim: status read before the lock       a_claim_reads_the_status_after_it_has_its_lock
claim: waits for batches                 claims_at_once_take_different_batches
claim: tries what is in hand             does_not_lock_what_another_has_just_claimed
claim: writes STARTED to the job         a_first_claim_in_a_long_transaction_does_not_hold_the_job
seal, add, stop, resolve: no intake lock a_seal_waits_for_items, ending_a_job_set_aside_waits
fence: none, or only what is free        cancel_behind_the_last_batch_revokes, acts_on_the_run
operators: act on the run seen first     an_operator_acts_on_the_run_that_he_stops
return: no epoch, no look, no offer      a_lease_is_gone_when, a_lease_that_ends_during, comes_back
expire: waits, no look, keeps its catch  reaper_passes_over, fails_the_last_batch, gives_up_waiting
reap: a dry run that is none             who_relied_on_a_dry_run_is_not_stranded
record_batches: in the order given       record_batches_in_opposite_orders_do_not_deadlock
enqueue: the key is looked up once       two_jobs_with_one_key_at_once_are_one_job
offers: withdrawn or made without lock   work_that_comes_while_a_claim_goes_away_empty_is_found
lock_job, stop_serving: no bound         who_holds_the_job_is_named_by_every_operators_call
levels: not refused                      levels_at_which_the_last_two_would_miss_each_other

Two were taken out and nothing failed, as something else does the same: the new epoch of a fenced
batch (it is pending, and the next claim gives it a new one), and the intake lock in retry_job
(whoever ends an unsealed job has taken it).
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session, make_operators_patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def a(new_session) -> Session:
    return new_session()


@pytest.fixture
def b(new_session) -> Session:
    return new_session()


@pytest.fixture
def c(new_session) -> Session:
    return new_session()


@pytest.fixture
def calls(db, background, admin) -> Iterator[Session]:
    """The session that sets the scene and looks at the end. Afterwards the rules must hold."""
    session = Session(db, background, admin)
    yield session
    if db.info.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:  # it failed, waiting
        db.rollback()
        assert_rules(db)


@pytest.fixture
def patient(db) -> None:
    """Operators' calls wait as long as it takes."""
    make_operators_patient(db)


def refused(sqlstate: str) -> Any:
    """As pytest.raises, for an error with this SQLSTATE."""
    return pytest.raises(psycopg.Error, check=lambda error: error.sqlstate == sqlstate)


def job_of(calls: Session, batches: int, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """A job of so many batches of one item, all of them leased."""
    job = calls.enqueue(items=batches, **options)
    return job, calls.claim(job, batches)


# Cancel against completion.


def test_a_cancel_behind_the_last_batch_answers_with_its_success(calls, a, b, patient):
    job, (batch,) = job_of(calls, 1)
    a.begin().record(batch)
    cancel = b.start(b.cancel, job)
    b.waits_for(a)
    a.commit()
    assert cancel.result(SOON) == "SUCCESS"
    assert calls.steps(job) == [
        (None, "PENDING"),
        ("PENDING", "STARTED"),
        ("STARTED", "SUCCESS"),
    ]


def test_a_cancel_behind_the_last_batch_revokes_when_that_rolls_back(calls, a, b, patient):
    job, (batch,) = job_of(calls, 1)
    a.begin().record(batch)
    cancel = b.start(b.cancel, job, "0")
    b.waits_for(a)
    a.rollback()
    assert cancel.result(SOON) == "REVOKED"
    with refused("PJ001"):
        a.record(batch)


@pytest.mark.parametrize("grace", ["0", "30 seconds"])
def test_the_last_batch_behind_a_cancel_follows_its_grace(calls, a, b, grace):
    job, (batch,) = job_of(calls, 1)
    a.begin().cancel(job, grace)
    record = b.start(b.record, batch)
    b.waits_for(a)
    a.commit()
    if grace == "0":
        with refused("PJ001"):
            record.result(SOON)
    else:
        done = record.result(SOON)
        assert (done["job_status"], done["job_done"]) == ("REVOKED", True)
    assert calls.status(job) == "REVOKED"


@pytest.mark.parametrize("grace", ["0", "30 seconds"])
def test_the_last_batch_behind_a_cancel_that_rolls_back_succeeds(calls, a, b, grace):
    job, (batch,) = job_of(calls, 1)
    a.begin().cancel(job, grace)
    record = b.start(b.record, batch)
    b.waits_for(a)
    a.rollback()
    assert record.result(SOON)["job_status"] == "SUCCESS"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_cancelled_job_is_ended_by_its_last_lease_though_an_earlier_one_is_open(
    calls, a, b, c, end
):
    """The recorder from before the cancel looked by the old rule; the next lease looks after it."""
    job, (first, second) = job_of(calls, 2)
    a.begin().record(first)
    assert c.cancel(job) == "CANCELING"
    record = b.start(b.record, second)
    b.waits_for(a)
    getattr(a, end)()
    ended = record.result(SOON)["job_done"]
    assert ended == (end == "commit")
    if end == "rollback":
        assert calls.record(first)["job_done"]
    assert calls.ends_of(job) == ["REVOKED"]


def test_a_cancelled_job_is_ended_though_a_stage_was_completed_before_it(calls, a, b, c):
    """Who completed the stage has finished looking, and still holds the ender of that stage."""
    job = calls.enqueue(items=1, stages=["one", "two"], seal=False)
    calls.add(job, [1, 2], "two")
    calls.seal(job)
    first, second = calls.claim(job, 2)  # both of stage two: later stages first
    (opening,) = calls.claim(job, 1)
    calls.release(first)
    assert {second["stage"], opening["stage"]} == {"two", "one"}
    a.begin().record(opening)  # completes stage one, and hands over to what is pending in two
    assert c.cancel(job) == "CANCELING"
    record = b.start(b.record, second)
    b.waits_or_ends(record)
    a.commit()
    record.result(SOON)
    assert calls.status(job) == "REVOKED"


@pytest.mark.parametrize("call", ["cancel", "finalize", "quarantine"])
def test_an_operator_acts_on_the_run_that_he_stops(calls, a, b, stops, call):
    """The run that he saw first has ended, and the next one has leases out by now."""
    job, (batch,) = job_of(calls, 1)
    stops.before("stop_serving", a)
    operator = {
        "cancel": lambda: a.cancel(job, "0"),
        "finalize": lambda: a.finalize(job, "FAILURE")["status"],
        "quarantine": lambda: a.quarantine(job),
    }[call]
    answer = a.start(operator)
    a.waits_for(stops.holder)
    calls.record(batch)
    calls.retry(job)
    (again,) = calls.claim(job)
    stops.go("stop_serving", a)
    assert (
        answer.result(SOON)
        == {
            "cancel": "REVOKED",
            "finalize": "FAILURE",
            "quarantine": "UNKNOWN",
        }[call]
    )
    with refused("PJ001"):
        b.record(again)
    assert calls.value("select run from pyjobs.job where id = %s", job) == 2


def test_a_forced_end_refused_for_a_job_set_aside_is_not_made_up_for_after_it(calls, a, b, patient):
    """It had not stopped the claims of the job that was resolved while it waited."""
    job, _ = job_of(calls, 1)
    calls.quarantine(job)
    a.begin().resolve(job)
    a.claim(job)
    finalize = b.start(b.finalize, job, "SUCCESS")
    b.waits_or_ends(finalize)
    a.commit()
    with refused("PJ003"):
        finalize.result(SOON)
    assert calls.status(job) == "STARTED"


@pytest.mark.parametrize("grace", ["0", "30 seconds"])
def test_a_lease_that_ends_during_a_cancel_waits_for_it(calls, a, b, grace):
    """By the old rule the closer of another open batch would have looked after it."""
    job = calls.enqueue(items=3)
    (batch,) = calls.claim(job)
    a.begin().cancel(job, grace)
    give_back = b.start(b.release, batch)
    b.waits_for(a)
    a.commit()
    if grace == "0":
        with refused("PJ001"):
            give_back.result(SOON)
    else:
        assert give_back.result(SOON) == "REVOKED"
    assert calls.ends_of(job) == ["REVOKED"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_cancel_comes_between_the_finishers_look_and_his_end(calls, a, b, c, end):
    """Both are in flight, so the cancel gives up waiting; then its rule holds, not completion's."""
    job, (first, second) = job_of(calls, 2)
    a.begin().record(first)
    record = b.start(b.record, second)
    b.waits_for(a)
    assert c.cancel(job) == "CANCELING"
    getattr(a, end)()
    done = record.result(SOON)
    if end == "rollback":
        assert done["job_status"] == "CANCELING"
        done = calls.record(first)
    assert done["job_status"] == "REVOKED"
    assert calls.ends_of(job) == ["REVOKED"]


# The last ones out, in every order.


def play(
    calls: Session,
    players: dict[str, tuple[Session, dict[str, Any]]],
    records: tuple[str, ...],
    ends: tuple[str, ...],
    rolled_back: set[str],
) -> int:
    """Record in that order and end in that order, each as soon as it can; how many ended the job.

    Who has to wait for another does so; those who come after him go on.
    """
    recorded, ended = {}, []
    for name in records:
        session, batch = players[name]
        recorded[name] = session.start(session.begin().record, batch)
        session.waits_or_ends(recorded[name])
    for name in ends:
        session, _ = players[name]

        def finish(name: str = name, session: Session = session) -> bool:
            done = recorded[name].result(SOON)["job_done"]
            (session.rollback if name in rolled_back else session.commit)()
            return done and name not in rolled_back

        ended.append(session.start(finish))
        session.waits_or_ends(ended[-1])
    enders = sum(end.result(SOON) for end in ended)
    for name in rolled_back:
        enders += calls.record(players[name][1])["job_done"]
    return enders


def subsets(names: str) -> list[str]:
    return ["".join(s) for n in range(len(names) + 1) for s in itertools.combinations(names, n)]


@pytest.mark.parametrize("rolled_back", subsets("abc"))
@pytest.mark.parametrize("cancelled", [False, True], ids=["completing", "cancelling"])
def test_one_of_the_last_three_ends_the_job(calls, a, b, c, cancelled, rolled_back):
    for ends in itertools.permutations("abc"):
        job, batches = job_of(calls, 3)
        if cancelled:
            assert calls.cancel(job) == "CANCELING"
        players = dict(zip("abc", zip((a, b, c), batches, strict=True), strict=True))
        assert play(calls, players, ("a", "b", "c"), ends, set(rolled_back)) == 1, ends
        assert calls.ends_of(job) == ["REVOKED" if cancelled else "SUCCESS"]


@pytest.mark.parametrize("rolled_back", subsets("ab"))
def test_one_of_the_last_two_ends_the_job(calls, a, b, rolled_back):
    for ends in itertools.permutations("ab"):
        job, batches = job_of(calls, 2)
        players = dict(zip("ab", zip((a, b), batches, strict=True), strict=True))
        assert play(calls, players, ("a", "b"), ends, set(rolled_back)) == 1, ends
        assert calls.ends_of(job) == ["SUCCESS"]


def two_stages(calls: Session, later: int) -> tuple[int, list[dict[str, Any]]]:
    """A job with one batch in its first stage and some in its second, all leased; first first."""
    job = calls.enqueue(items=1, stages=["one", "two"], seal=False)
    calls.add(job, list(range(later)), "two")
    calls.seal(job)
    batches = sorted(calls.claim(job, 1 + later), key=lambda batch: batch["stage"])
    assert [batch["stage"] for batch in batches] == ["one"] + ["two"] * later
    return job, batches


@pytest.mark.parametrize("rolled_back", subsets("ab"))
@pytest.mark.parametrize("records", ["ab", "ba"])
def test_one_of_the_last_of_two_stages_ends_the_job(calls, a, b, records, rolled_back):
    """Completing a stage changes what is in the way: it is handed over to who closes that."""
    for ends in itertools.permutations("ab"):
        job, batches = two_stages(calls, 1)
        players = dict(zip("ab", zip((a, b), batches, strict=True), strict=True))
        assert play(calls, players, tuple(records), ends, set(rolled_back)) == 1, ends
        assert calls.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("records", ["".join(p) for p in itertools.permutations("abc")])
def test_one_of_the_last_three_of_two_stages_ends_the_job(calls, a, b, c, records):
    for ends in itertools.permutations("abc"):
        for rolled_back in ("", "a", "b"):
            job, batches = two_stages(calls, 2)
            players = dict(zip("abc", zip((a, b, c), batches, strict=True), strict=True))
            enders = play(calls, players, tuple(records), ends, set(rolled_back))
            assert enders == 1, (ends, rolled_back)
            assert calls.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("first_to_look", ["a", "b"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_both_of_the_last_two_have_recorded_before_either_looks(
    calls, a, b, stops, first_to_look, end
):
    job, (first, second) = job_of(calls, 2)
    batches = {a: first, b: second}
    looks = {}
    for session, batch in batches.items():
        stops.before("quiet_batch", session)
        looks[session] = session.start(session.begin().record, batch)
        session.waits_for(stops.holder)
    ender, other = (a, b) if first_to_look == "a" else (b, a)
    stops.go("quiet_batch", ender)
    ender.waits_for(other)
    stops.go("quiet_batch", other)
    assert not looks[other].result(SOON)["job_done"]  # somebody waits for it
    getattr(other, end)()
    done = looks[ender].result(SOON)["job_done"]
    assert done == (end == "commit")
    ender.commit()
    if not done:
        assert calls.record(batches[other])["job_done"]
    assert calls.ends_of(job) == ["SUCCESS"]


def test_the_last_two_are_recorded_in_one_transaction_beside_a_third(calls, a, b):
    job, (first, second, third) = job_of(calls, 3)
    a.begin().record(first)
    b.begin().record(third)
    record = a.start(a.record, second)
    a.waits_for(b)
    b.commit()
    assert record.result(SOON)["job_done"]
    a.commit()
    assert calls.ends_of(job) == ["SUCCESS"]


# Savepoints.


def test_a_record_in_a_savepoint_that_is_rolled_back_was_not_the_last(calls, a, b):
    job, (first, second) = job_of(calls, 2)
    a.begin().do("savepoint s")
    a.record(first)
    record = b.start(b.record, second)
    b.waits_for(a)
    a.do("rollback to savepoint s")
    # The waiting finisher learns of it at once, and not when the transaction ends.
    assert not record.result(SOON)["job_done"]
    assert calls.status(job) == "STARTED"
    assert a.record(first)["job_done"]
    a.commit()
    assert calls.ends_of(job) == ["SUCCESS"]


def test_an_end_in_a_savepoint_that_is_rolled_back_was_none(calls, a, b):
    job, (first, second) = job_of(calls, 2)
    a.begin().record(first)
    b.begin().do("savepoint s")
    record = b.start(b.record, second)
    b.waits_for(a)
    a.commit()
    assert record.result(SOON)["job_done"]
    b.do("rollback to savepoint s")
    b.commit()
    assert calls.status(job) == "STARTED"
    assert calls.record(second)["job_done"]
    assert calls.ends_of(job) == ["SUCCESS"]


def test_who_relied_on_a_finisher_is_not_stranded_by_his_savepoint(calls, a, b, c):
    """c goes home because b waits; then b's savepoint is rolled back."""
    job, (first, second, third) = job_of(calls, 3)
    a.begin().record(first)
    c.begin().extend(third)  # in flight, so that b waits instead of relying on it
    b.begin().do("savepoint s")
    record = b.start(b.record, second)
    b.waits_for()
    assert not c.record(third)["job_done"]
    a.commit()
    c.commit()
    assert record.result(SOON)["job_done"]
    b.do("rollback to savepoint s")
    assert b.record(second)["job_done"]
    b.commit()
    assert calls.ends_of(job) == ["SUCCESS"]


def test_a_claim_and_its_record_in_savepoints_are_seen_as_they_end(calls, a, b):
    job = calls.enqueue(items=2)
    a.begin().do("savepoint s")
    (lost,) = a.claim(job)
    a.record(lost)
    a.do("rollback to savepoint s")
    (batch,) = a.claim(job)
    a.do("savepoint t")
    a.record(batch)
    a.do("rollback to savepoint t")
    (other,) = b.claim(job)
    record = b.start(b.record, other)
    b.waits_for(a)
    a.commit()
    assert not record.result(SOON)["job_done"]
    assert calls.record(batch)["job_done"]


# Sealing, adding, emitting.


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_seal_waits_for_the_last_record(calls, a, b, end):
    job, (batch,) = job_of(calls, 1, seal=False)
    assert not a.begin().record(batch)["job_done"]
    seal = b.start(b.seal, job)
    b.waits_for(a)
    getattr(a, end)()
    assert seal.result(SOON) == ("SUCCESS" if end == "commit" else "STARTED")
    if end == "rollback":
        assert calls.record(batch)["job_done"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_last_record_waits_for_a_seal(calls, a, b, end):
    job, (batch,) = job_of(calls, 1, seal=False)
    assert a.begin().seal(job) == "STARTED"
    record = b.start(b.record, batch)
    b.waits_for(a)
    getattr(a, end)()
    assert record.result(SOON)["job_done"] == (end == "commit")
    if end == "rollback":
        assert calls.seal(job) == "SUCCESS"


def test_a_seal_keeps_one_of_several_that_are_open(calls, a, b, c):
    """One has recorded and looked before the seal; the other must look after it."""
    job, (first, second) = job_of(calls, 2, seal=False)
    a.begin().record(first)
    assert b.begin().seal(job) == "STARTED"
    record = c.start(c.record, second)
    c.waits_for(b)
    b.commit()
    c.waits_for(a)
    a.commit()
    assert record.result(SOON)["job_done"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_seal_waits_for_items_on_their_way(calls, a, b, end):
    job = calls.enqueue(items=[], seal=False)
    a.begin().add(job, [1, 2])
    seal = b.start(b.seal, job)
    b.waits_for(a)
    getattr(a, end)()
    assert seal.result(SOON) == ("PENDING" if end == "commit" else "SUCCESS")
    assert calls.progress(job)["stages"][0]["total"] == (2 if end == "commit" else 0)
    calls.finish(job)
    assert calls.status(job) == "SUCCESS"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_items_wait_for_a_seal(calls, a, b, end):
    job = calls.enqueue(items=1, seal=False)
    a.begin().seal(job)
    add = b.start(b.add, job, [1, 2])
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with refused("PJ006"):
            add.result(SOON)
    else:
        assert add.result(SOON) == "PENDING"
    assert calls.progress(job)["stages"][0]["total"] == (1 if end == "commit" else 3)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_cancel_waits_for_items_on_their_way(calls, a, b, patient, end):
    job = calls.enqueue(items=1, seal=False)
    a.begin().add(job, [1, 2])
    cancel = b.start(b.cancel, job)
    b.waits_for(a)
    getattr(a, end)()
    assert cancel.result(SOON) == "REVOKED"
    with refused("PJ006"):
        calls.add(job, [3])
    assert calls.progress(job)["stages"][0]["total"] == (3 if end == "commit" else 1)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("barriers", [[], ["two"]], ids=["open", "barrier"])
def test_items_emitted_meanwhile_keep_the_job_from_its_end(calls, a, b, barriers, end):
    """The finisher of the first stage waits, and must then see what was emitted."""
    job, (first, second) = job_of(calls, 2, stages=["one", "two"], barriers=barriers)
    a.begin().record(first, next_items=["x", "y"])
    record = b.start(b.record, second)
    b.waits_for(a)
    assert calls.claim(job) == []
    getattr(a, end)()
    done = record.result(SOON)
    assert done["stage_done"] == (end == "commit")
    assert not done["job_done"]
    if end == "rollback":
        calls.record(first, next_items=["x", "y"])
    (batch, other) = calls.claim(job, 5)
    assert (batch["stage"], other["stage"]) == ("two", "two")
    assert not calls.record(batch)["job_done"]
    assert calls.record(other)["job_done"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_emitter_as_the_last_of_its_stage(calls, a, b, end):
    job, (first, second) = job_of(calls, 2, stages=["one", "two"], barriers=["two"])
    a.begin().record(first)
    record = b.start(b.record, second, next_items=["x"])
    b.waits_for(a)
    getattr(a, end)()
    record.result(SOON)
    opened = calls.claim(job)
    assert [batch["stage"] for batch in opened] == (["two"] if end == "commit" else [])
    if end == "rollback":
        assert calls.record(first)["stage_done"]
    else:
        calls.release(*opened)
    calls.finish(job)
    assert calls.status(job) == "SUCCESS"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_barrier_opens_with_the_commit_of_the_stage_before(calls, a, b, end):
    job, (batch,) = job_of(calls, 1, stages=["one", "two"], barriers=["two"], seal=False)
    calls.add(job, [1], "two")
    calls.seal(job)
    assert a.begin().record(batch)["stage_done"]
    assert calls.claim(job) == []
    assert calls.ask("w", "default") == []
    getattr(a, end)()
    assert len(calls.ask("w", "default")) == (end == "commit")
    if end == "rollback":
        assert calls.record(batch)["stage_done"]
        (batch,) = calls.ask("w", "default")
        assert batch["stage"] == "two"


def test_a_record_of_a_later_stage_meets_one_that_completes_the_stage_before(calls, a, b, stops):
    """It reads the stages before the other commits, and looks after that."""
    _, (first, second) = two_stages(calls, 1)
    stops.before("obstacle_quiet", b)
    b.begin()
    record = b.start(b.record, second)
    b.waits_for(stops.holder)
    complete = a.start(a.record, first)
    a.waits_for(b)
    stops.go("obstacle_quiet", b)
    assert not record.result(SOON)["job_done"]
    b.commit()
    assert complete.result(SOON)["job_done"]


# Leases that run out, are given back, or extended.


def expired(calls: Session, batches: int, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """As job_of, and the leases have run out."""
    calls.settable_clock()
    job, leased = job_of(calls, batches, **options)
    calls.pass_time("2 minutes")
    return job, leased


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_reaper_passes_over_a_result_in_flight(calls, a, b, end):
    job, (batch,) = expired(calls, 1)
    a.begin().record(batch)
    assert b.reap() == []
    getattr(a, end)()
    reaped = b.reap()
    assert [row["action"] for row in reaped] == ([] if end == "commit" else ["expired"])
    assert calls.status(job) == ("SUCCESS" if end == "commit" else "STARTED")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_result_waits_for_a_reaper(calls, a, b, end):
    _, (batch,) = expired(calls, 1)
    assert [row["action"] for row in a.begin().reap()] == ["expired"]
    record = b.start(b.record, batch)
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with refused("PJ001"):
            record.result(SOON)
    else:
        assert record.result(SOON)["job_done"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_reaper_that_fails_the_last_batch_waits_for_a_result(calls, a, b, patient, end):
    calls.settable_clock()
    job = calls.enqueue(items=2, max_attempts=1, failure_threshold=0.4)
    calls.claim(job)
    calls.pass_time("2 minutes")
    (batch,) = calls.claim(job)
    a.begin().record(batch)
    reap = b.start(b.reap)
    b.waits_for(a)
    getattr(a, end)()
    assert [row["action"] for row in reap.result(SOON)] == ["failed"]
    if end == "rollback":
        assert calls.record(batch)["job_done"]
    assert calls.ends_of(job) == ["FAILURE"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_reaper_that_gives_up_waiting_has_changed_nothing(calls, a, b, end):
    """It was the ender, and who came meanwhile relied on it; so the batch is open again."""
    job, (lost, batch) = expired(calls, 2, max_attempts=1)
    a.begin().record(batch)
    assert [row["action"] for row in b.reap()] == ["postponed"]
    assert calls.value("select state from pyjobs.batch where id = %s", lost["batch_id"]) == (
        "leased"
    )
    getattr(a, end)()
    calls.reap()
    assert calls.ends_of(job) == ["SUCCESS" if end == "commit" else "FAILURE"]


def test_who_relied_on_a_dry_run_is_not_stranded(calls, a, b, c, patient):
    job, (_, first, second) = expired(calls, 3, max_attempts=1)
    a.begin().record(first)
    b.begin().extend(second)
    dry = c.start(c.reap, dry_run=True)
    c.waits_for()
    b.record(second)
    b.commit()
    a.commit()
    assert "failed" in [row["action"] for row in dry.result(SOON)]
    assert calls.status(job) == "STARTED"
    calls.reap()
    assert calls.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("release_first", [True, False])
def test_the_last_attempt_given_back_meets_the_last_record(calls, a, b, release_first, end):
    job, (first, second) = job_of(calls, 2, max_attempts=1)
    release = functools.partial(a.release, first, "broken")
    if release_first:
        assert a.begin().release(first, "broken") == "STARTED"
        last = b.start(b.record, second)
    else:
        a.begin().record(second)
        last = b.start(b.release, first, "broken")
    b.waits_for(a)
    getattr(a, end)()
    last.result(SOON)
    if end == "rollback":
        assert calls.status(job) == "STARTED"
        if release_first:
            release()
        else:
            calls.record(second)
    assert calls.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_reaper_passes_over_a_lease_that_is_being_extended(calls, a, b, end):
    _, (batch,) = expired(calls, 1)
    a.begin().extend(batch)
    assert b.reap() == []
    getattr(a, end)()
    assert len(b.reap()) == (end == "rollback")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_extension_waits_for_a_reaper(calls, a, b, end):
    _, (batch,) = expired(calls, 1)
    a.begin().reap()
    extend = b.start(b.extend, batch)
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with refused("PJ001"):
            extend.result(SOON)
    else:
        extend.result(SOON)
        assert calls.reap() == []


def test_a_result_is_refused_when_the_batch_was_leased_again_while_it_waited(calls, a, b):
    """The epoch decides under the row's lock too, not only at the look before."""
    job, (batch,) = expired(calls, 1)
    a.begin().reap()
    (again,) = a.claim(job, worker="another")
    record = b.start(b.record, batch)
    b.waits_for(a)
    a.commit()
    with refused("PJ001"):
        record.result(SOON)
    assert calls.record(again)["job_done"]


@pytest.mark.parametrize("call", ["extend", "release"])
def test_a_lease_is_gone_when_the_batch_was_leased_again_while_its_holder_waited(calls, a, b, call):
    job, (batch,) = expired(calls, 1)
    a.begin().reap()
    (again,) = a.claim(job)
    late = b.start(getattr(b, call), batch)
    b.waits_for(a)
    a.commit()
    with refused("PJ001"):
        late.result(SOON)
    assert calls.record(again)["job_done"]


def test_the_same_result_twice_at_once_counts_once(calls, a, b):
    job, (batch, _) = job_of(calls, 2)
    a.begin().record(batch, counters={"found": 5})
    twice = b.start(b.record, batch, counters={"found": 5})
    b.waits_for(a)
    a.commit()
    with refused("PJ002"):
        twice.result(SOON)
    assert calls.progress(job)["stages"][0]["counters"] == {"found": 5}


def test_a_stale_result_does_not_wait_for_a_row_that_another_changes(calls, a, b):
    job, (stale,) = expired(calls, 1)
    calls.reap()
    (batch,) = calls.claim(job)
    a.begin().record(batch)
    for late in (b.record, b.extend, b.release):
        call = b.start(late, stale)
        assert not b.waits_or_ends(call)
        with refused("PJ001"):
            call.result(SOON)
    assert b.start(b.record_many, stale).result(SOON) == ["stale"]
    a.commit()


def test_a_stale_result_does_not_wait_for_a_finisher_who_waits(calls, a, b, c):
    calls.settable_clock()
    job = calls.enqueue(items=2)
    (stale,) = calls.claim(job)
    calls.pass_time("2 minutes")
    calls.reap()
    first, second = calls.claim(job, 2)
    mine, other = sorted((first, second), key=lambda x: x["batch_id"] != stale["batch_id"])
    a.begin().record(other)
    record = b.start(b.record, mine)
    b.waits_for(a)
    late = c.start(c.record, stale)
    assert not c.waits_or_ends(late)
    with refused("PJ001"):
        late.result(SOON)
    a.commit()
    assert record.result(SOON)["job_done"]


# Operators against workers.


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_quarantine_waits_for_a_result(calls, a, b, patient, end):
    job, (batch, _) = job_of(calls, 2)
    a.begin().record(batch)
    quarantine = b.start(b.quarantine, job)
    b.waits_for(a)
    getattr(a, end)()
    assert quarantine.result(SOON) == "UNKNOWN"
    processed = calls.progress(job)["stages"][0]["processed"]
    assert processed == (1 if end == "commit" else 0)
    calls.resolve(job)
    calls.finish(job)
    assert calls.status(job) == "SUCCESS"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_quarantine_waits_for_the_last_result(calls, a, b, patient, end):
    job, (batch,) = job_of(calls, 1)
    a.begin().record(batch)
    quarantine = b.start(b.quarantine, job)
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with refused("PJ003"):
            quarantine.result(SOON)
        assert calls.status(job) == "SUCCESS"
    else:
        assert quarantine.result(SOON) == "UNKNOWN"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_result_waits_for_a_quarantine(calls, a, b, end):
    job, (batch,) = job_of(calls, 1)
    assert a.begin().quarantine(job) == "UNKNOWN"
    record = b.start(b.record, batch)
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with refused("PJ001"):
            record.result(SOON)
        assert calls.status(job) == "UNKNOWN"
    else:
        assert record.result(SOON)["job_done"]


def test_a_job_set_aside_between_the_last_two_is_finished_after_it_is_resolved(
    calls, a, b, patient
):
    job, (first, second) = job_of(calls, 2)
    calls.record(first)
    a.begin().release(second)
    quarantine = b.start(b.quarantine, job)
    b.waits_for(a)
    a.commit()
    assert quarantine.result(SOON) == "UNKNOWN"
    assert calls.resolve(job) == "RETRY"
    (again,) = calls.claim(job)
    assert calls.record(again)["job_done"]


def test_a_resolved_job_hands_over_to_a_claim_in_flight(calls, a, b):
    """All is closed but one batch that somebody claims in the transaction that resolves."""
    job, (first, second) = job_of(calls, 2)
    calls.record(first)
    calls.quarantine(job)
    with refused("PJ001"):
        calls.record(second)
    a.begin().resolve(job)
    (batch,) = a.claim(job)
    a.commit()
    assert calls.status(job) == "STARTED"
    assert b.record(batch)["job_done"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_finalize_without_a_status_leaves_a_job_to_its_finisher(calls, a, b, patient, end):
    job, (batch,) = job_of(calls, 1)
    a.begin().record(batch)
    finalize = b.start(b.finalize, job)
    b.waits_for(a)
    getattr(a, end)()
    assert finalize.result(SOON) == {
        "transitioned": False,
        "status": "SUCCESS" if end == "commit" else "STARTED",
    }
    if end == "rollback":
        assert calls.record(batch)["job_done"]
    assert calls.ends_of(job) == ["SUCCESS"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_finalize_without_a_status_does_not_send_a_finisher_home(calls, a, b, c, end):
    """Were it the ender the finisher would rely on it, and it ends nothing."""
    job, (first, second) = job_of(calls, 2)
    b.begin().record(first)
    assert not a.begin().finalize(job)["transitioned"]
    record = c.start(c.record, second)
    c.waits_for(b)
    b.commit()
    c.waits_or_ends(record)
    getattr(a, end)()
    assert record.result(SOON)["job_done"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("forced", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_forced_end_waits_for_a_result(calls, a, b, patient, forced, end):
    job, (batch, other) = job_of(calls, 2)
    a.begin().record(batch)
    finalize = b.start(b.finalize, job, forced)
    b.waits_for(a)
    getattr(a, end)()
    assert finalize.result(SOON) == {"transitioned": True, "status": forced}
    assert calls.progress(job)["stages"][0]["processed"] == (1 if end == "commit" else 0)
    with refused("PJ001"):
        calls.record(other)
    assert calls.ends_of(job) == [forced]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_forced_end_behind_the_last_result_is_too_late(calls, a, b, patient, end):
    job, (batch,) = job_of(calls, 1)
    a.begin().record(batch)
    finalize = b.start(b.finalize, job, "FAILURE")
    b.waits_for(a)
    getattr(a, end)()
    assert finalize.result(SOON) == (
        {"transitioned": False, "status": "SUCCESS"}
        if end == "commit"
        else {"transitioned": True, "status": "FAILURE"}
    )


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_result_waits_for_a_forced_end(calls, a, b, end):
    job, (batch,) = job_of(calls, 1)
    assert a.begin().finalize(job, "FAILURE")["transitioned"]
    record = b.start(b.record, batch)
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with refused("PJ001"):
            record.result(SOON)
    else:
        assert record.result(SOON)["job_done"]
    assert calls.ends_of(job) == ["FAILURE" if end == "commit" else "SUCCESS"]


def test_two_who_end_a_job_at_once_end_it_once(calls, a, b, patient):
    job, _ = job_of(calls, 1)
    a.begin().finalize(job, "FAILURE")
    cancel = b.start(b.cancel, job, "0")
    b.waits_for(a)
    a.commit()
    assert cancel.result(SOON) == "FAILURE"
    assert calls.ends_of(job) == ["FAILURE"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_late_result_of_an_earlier_run_counts_in_none(calls, a, b, end):
    job, (batch, late) = job_of(calls, 2)
    calls.record(batch)
    calls.finalize(job, "FAILURE")
    a.begin().retry(job)
    record = b.start(b.record, late)
    assert not b.waits_or_ends(record)
    with refused("PJ001"):
        record.result(SOON)
    getattr(a, end)()
    with refused("PJ001"):
        b.record(late)
    assert calls.progress(job)["stages"][0]["processed"] == (0 if end == "commit" else 1)
    if end == "commit":
        calls.finish(job)
        assert calls.ends_of(job) == ["FAILURE", "SUCCESS"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_retries_at_once_start_one_run(calls, a, b, patient, end):
    job = calls.enqueue(items=2)
    calls.finish(job)
    a.begin().retry(job)
    again = b.start(b.retry, job)
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with refused("PJ003"):
            again.result(SOON)
    else:
        assert again.result(SOON) == "RETRY"
    assert calls.value("select run from pyjobs.job where id = %s", job) == 2


def test_a_retry_of_an_unsealed_job_waits_for_items_on_their_way(calls, a, b, patient, stops):
    """They came into the run that was cancelled, and must be in the next one."""
    job = calls.enqueue(items=1, seal=False)
    stops.before("insert_batches", a)
    add = a.start(a.add, job, ["late"])
    a.waits_for(stops.holder)
    cancel = b.start(b.cancel, job, "0")
    b.waits_for(a)
    stops.go("insert_batches", a)
    add.result(SOON)
    assert cancel.result(SOON) == "REVOKED"
    calls.retry(job)
    assert calls.progress(job)["stages"][0]["total"] == 2


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_ending_a_job_set_aside_waits_for_items_that_came_meanwhile(calls, a, b, patient, end):
    """They would come to a job that is final, and change its counts."""
    job = calls.enqueue(items=1, seal=False)
    calls.quarantine(job)
    a.begin().add(job, [1, 2])
    resolve = b.start(b.resolve, job, "FAILURE")
    b.waits_for(a)
    getattr(a, end)()
    assert resolve.result(SOON) == "FAILURE"
    total = 3 if end == "commit" else 1
    assert calls.progress(job)["stages"][0]["total"] == total
    assert calls.retry(job) == "RETRY"
    assert calls.progress(job)["stages"][0]["total"] == total


# Claims.


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_cancel_waits_for_a_claim_and_frees_what_it_took(calls, a, b, patient, end):
    job = calls.enqueue(items=2)
    (batch,) = a.begin().claim(job)
    cancel = b.start(b.cancel, job, "0")
    b.waits_for(a)
    assert calls.claim(job) == []  # from here on
    getattr(a, end)()
    assert cancel.result(SOON) == "REVOKED"
    with refused("PJ001"):
        a.record(batch)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_cancel_with_grace_waits_for_a_claim(calls, a, b, patient, end):
    job = calls.enqueue(items=2)
    (batch,) = a.begin().claim(job)
    cancel = b.start(b.cancel, job)
    b.waits_for(a)
    getattr(a, end)()
    assert cancel.result(SOON) == ("CANCELING" if end == "commit" else "REVOKED")
    if end == "commit":
        assert calls.record(batch)["job_status"] == "REVOKED"


@pytest.mark.parametrize("grace", ["0", "30 seconds"])
def test_a_claim_in_a_long_transaction_does_not_keep_a_cancel_from_stopping_claims(
    calls, a, b, grace
):
    job = calls.enqueue(items=3)
    (batch,) = a.begin().claim(job)
    assert b.cancel(job, grace) == "CANCELING"
    assert calls.claim(job) == []
    assert a.claim(job) == []  # nor in its own transaction
    done = a.record(batch)
    assert (done["job_status"], done["job_done"]) == ("REVOKED", True)
    a.commit()
    assert calls.ends_of(job) == ["REVOKED"]


def test_a_claim_that_a_cancel_did_not_wait_for_may_be_recorded_afterwards(calls, a, b):
    job = calls.enqueue(items=3)
    (batch,) = a.begin().claim(job)
    assert b.cancel(job) == "CANCELING"
    a.commit()
    assert calls.status(job) == "CANCELING"
    assert calls.record(batch)["job_status"] == "REVOKED"


def test_the_last_lease_known_does_not_end_a_job_while_a_claim_is_in_flight(calls, a, b):
    """A cancel that did not wait has not seen it: a final job with a lease out would be the end."""
    job = calls.enqueue(items=3)
    (known,) = calls.claim(job)
    (unknown,) = a.begin().claim(job)
    assert b.cancel(job) == "CANCELING"
    assert calls.record(known)["job_status"] == "CANCELING"
    a.commit()
    assert calls.record(unknown)["job_status"] == "REVOKED"
    assert calls.ends_of(job) == ["REVOKED"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_reaper_ends_a_cancel_that_a_claim_was_in_the_way_of(calls, a, b, end):
    calls.settable_clock()
    job = calls.enqueue(items=3)
    a.begin().claim(job)
    assert b.cancel(job) == "CANCELING"
    assert [row["action"] for row in b.reap()] == ["postponed"]
    getattr(a, end)()
    if end == "commit":
        assert b.reap() == []  # the grace is not over
        calls.pass_time("31 seconds")
    assert [row["action"] for row in b.reap()] == ["revoked"]
    assert calls.ends_of(job) == ["REVOKED"]


@pytest.mark.parametrize("call", ["claim", "ask"])
def test_a_claim_reads_the_status_after_it_has_its_lock(calls, a, b, stops, call):
    """One that had read it before would lease a batch of a job that is final by now."""
    job = calls.enqueue(items=2)
    stops.before("serving_key", a)
    ask = {"claim": (a.claim, job), "ask": (a.ask, "w", "default")}[call]
    claim = a.start(*ask)
    a.waits_for(stops.holder)
    assert b.cancel(job) == "REVOKED"
    stops.go("serving_key", a)
    assert claim.result(SOON) == []


def test_a_claim_never_waits_for_a_cancel(calls, a, b):
    job = calls.enqueue(items=2)
    a.begin().cancel(job)
    for call in ((b.claim, job), (b.ask, "w", "default")):
        claim = b.start(*call)
        assert not b.waits_or_ends(claim)
        assert claim.result(SOON) == []
    a.rollback()
    assert len(b.claim(job)) == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_pause_and_a_claim_do_not_wait_for_each_other(calls, a, b, end):
    job = calls.enqueue(items=3)
    a.begin().claim(job)
    pause = b.start(b.begin().value, "select pyjobs.pause_job(%s)", job)
    assert not b.waits_or_ends(pause)
    claim = calls.start(calls.claim, job)  # the pause has not committed
    assert not calls.waits_or_ends(claim)
    (batch,) = claim.result(SOON)
    getattr(b, end)()
    assert len(calls.claim(job)) == (0 if end == "commit" else 1)
    a.commit()
    calls.record(batch)
    if end == "commit":
        assert calls.ask("w", "default") == []
        calls.do("select pyjobs.resume_job(%s)", job)
    assert len(calls.ask("w", "default")) == (1 if end == "commit" else 0)


def test_a_pause_does_not_keep_the_last_batch_from_ending_the_job(calls, a, b):
    job, (batch,) = job_of(calls, 1)
    a.begin().do("select pyjobs.pause_job(%s)", job)
    record = b.start(b.record, batch)
    b.waits_for(a)
    a.commit()
    assert record.result(SOON)["job_done"]


def test_claims_at_once_take_different_batches(calls, a, b, c):
    job = calls.enqueue(items=5)
    taken = [*a.begin().claim(job, 2)]
    call = b.start(b.begin().claim, job, 2)
    assert not b.waits_or_ends(call)
    taken += call.result(SOON)
    taken += c.claim(job, 9)
    assert len({batch["batch_id"] for batch in taken}) == len(taken) == 5
    a.rollback()
    b.commit()
    freed = calls.claim(job, 9)
    assert {x["batch_id"] for x in freed} == {x["batch_id"] for x in taken[:2]}


@pytest.mark.parametrize(
    "ask",
    [
        "select * from pyjobs.claim_next_job(%s, '{default}', 2)",
        "select * from pyjobs.claim_jobs(%s, '{default}', 3)",
    ],
    ids=["claim_next_job", "claim_jobs"],
)
def test_no_batch_is_leased_twice_however_many_ask(calls, new_session, ask):
    for n in range(4):
        calls.enqueue(items=10 + n)

    def work(session: Session, name: str) -> list[tuple[int, int]]:
        taken: list[tuple[int, int]] = []
        while rows := session.rows(ask, name):
            taken += [(row["batch_id"], row["lease_epoch"]) for row in rows]
        return taken

    workers = [new_session() for _ in range(6)]
    asking = [w.start(work, w, f"w{n}") for n, w in enumerate(workers)]
    taken = [lease for future in asking for lease in future.result(SOON)]
    assert len({batch for batch, _ in taken}) == len(taken)
    assert {epoch for _, epoch in taken} == {1}
    # A claim that met another at the last batch of a job may have gone away too early.
    while rows := calls.ask("w", "default"):
        taken += [(row["batch_id"], row["lease_epoch"]) for row in rows]
    assert len({batch for batch, _ in taken}) == len(taken) == 46


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_work_that_comes_while_a_claim_goes_away_empty_is_found(calls, a, b, end):
    job = calls.enqueue(items=1, seal=False)
    assert len(calls.ask("w", "default")) == 1
    calls.add(job, [1])
    calls.claim(job, 5)
    assert a.begin().ask("w", "default") == []  # withdraws the offer
    add = b.start(b.add, job, [2])
    assert not b.waits_or_ends(add)
    add.result(SOON)
    getattr(a, end)()
    assert len(calls.ask("w", "default")) == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_work_on_its_way_keeps_a_claim_from_withdrawing_the_offer(calls, a, b, end):
    job = calls.enqueue(items=1, seal=False)
    calls.claim(job)  # leaves the offer
    a.begin().add(job, [2])
    ask = b.start(b.ask, "w", "default")
    assert not b.waits_or_ends(ask)
    assert ask.result(SOON) == []
    getattr(a, end)()
    assert len(calls.ask("w", "default")) == (end == "commit")


# Several jobs in one transaction, and calls that meet in opposite orders.


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_results_of_several_jobs_in_one_transaction_end_them_with_it(calls, a, b, c, end):
    one, (one_a, one_b) = job_of(calls, 2)
    two, (two_a, two_b) = job_of(calls, 2)
    a.begin().record(one_a)
    a.record(two_a)
    ends = [b.start(b.record, one_b), c.start(c.record, two_b)]
    b.waits_for(a)
    c.waits_for(a)
    getattr(a, end)()
    for done in ends:
        assert done.result(SOON)["job_done"] == (end == "commit")
    if end == "rollback":
        a.begin().record(one_a)
        assert a.record(two_a)["job_done"]
        a.commit()
    assert calls.ends_of(one) == calls.ends_of(two) == ["SUCCESS"]


def test_a_deadlock_of_callers_own_making_is_one_error_and_ends_well(calls, a, b):
    """Two jobs, two transactions, opposite orders: the server ends one, which then repeats."""
    one, (one_a, one_b) = job_of(calls, 2)
    two, (two_a, two_b) = job_of(calls, 2)
    a.begin().record(one_a)
    b.begin().record(two_b)
    calls_in_flight = {a: a.start(a.record, two_a)}
    a.waits_for(b)
    calls_in_flight[b] = b.start(b.record, one_b)
    results = {a: (one_a, two_a), b: (two_b, one_b)}
    failed = []
    for session, call in calls_in_flight.items():
        try:
            call.result(SOON)
            session.commit()
        except psycopg.errors.DeadlockDetected:
            session.rollback()
            failed.append(session)
    assert len(failed) <= 1
    for session in failed:
        assert [calls.record(batch)["job_done"] for batch in results[session]] == [True, True]
    assert calls.ends_of(one) == calls.ends_of(two) == ["SUCCESS"]


def test_record_batches_in_opposite_orders_do_not_deadlock(calls, a, b, stops):
    _, (one_a, one_b) = job_of(calls, 2)
    _, (two_a, two_b) = job_of(calls, 2)
    stops.before("quiet_batch", a)
    forwards = a.start(a.record_many, one_a, two_a)
    a.waits_for(stops.holder)
    backwards = b.start(b.record_many, two_b, one_b)
    b.waits_for(a)
    stops.go("quiet_batch", a)
    assert forwards.result(SOON) == backwards.result(SOON) == ["recorded", "recorded"]


@pytest.mark.parametrize(
    "call",
    [
        "cancel_job(%s)",
        "cancel_job(%s, grace => '0')",
        "finalize_job(%s, 'FAILURE')",
        "quarantine_job(%s, 'odd')",
    ],
)
def test_an_operator_whose_job_is_purged_while_he_waits_is_told_so(calls, a, b, patient, call):
    job, batches = job_of(calls, 2)
    # A claim that found nothing, and is open still.
    assert a.begin().claim(job) == []
    waits = b.start(b.do, f"select pyjobs.{call}", job)
    b.waits_for(a)
    for batch in batches:
        calls.record(batch)
    assert calls.value("select pyjobs.purge_jobs('0')") == 1
    a.commit()
    with pytest.raises(psycopg.Error, match=f"there is no job {job}") as refused:
        waits.result(SOON)
    assert refused.value.sqlstate == "PJ004"


# Dedupe keys.


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_jobs_with_one_key_at_once_are_one_job(calls, a, b, end):
    first = a.begin().enqueue(items=1, dedupe_key="once")
    enqueue = b.start(b.enqueue, items=1, dedupe_key="once")
    b.waits_for(a)
    getattr(a, end)()
    second = enqueue.result(SOON)
    assert (second == first) == (end == "commit")
    assert calls.value("select count(*) from pyjobs.job") == 1
    calls.finish(second)
    assert calls.enqueue(items=1, dedupe_key="once") != second


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_key_is_free_again_with_the_commit_that_ends_its_job(calls, a, b, end):
    job, (batch,) = job_of(calls, 1, dedupe_key="once")
    assert a.begin().record(batch)["job_done"]
    assert b.enqueue(items=1, dedupe_key="once") == job
    getattr(a, end)()
    again = b.enqueue(items=1, dedupe_key="once")
    assert (again == job) == (end == "rollback")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_retry_and_a_new_job_with_its_key_do_not_both_live(calls, a, b, patient, end):
    job = calls.enqueue(items=1, dedupe_key="once")
    calls.finish(job)
    new = a.begin().enqueue(items=1, dedupe_key="once")
    retry = b.start(b.retry, job)
    b.waits_for(a)
    getattr(a, end)()
    if end == "commit":
        with pytest.raises(psycopg.Error, match=r"dedupe key") as info:
            retry.result(SOON)
        assert info.value.sqlstate == "PJ006"
        assert calls.status(new) == "PENDING"
        assert calls.status(job) == "SUCCESS"
    else:
        assert retry.result(SOON) == "RETRY"


# No hot row.


def touched(session: Session) -> dict[str, int]:
    """Rows that this session's open transaction has written, by table."""
    return {
        row["relname"]: row["written"]
        for row in session.rows(
            "select relname, n_tup_ins + n_tup_upd + n_tup_del as written "
            "from pg_stat_xact_user_tables "
            "where schemaname = 'pyjobs_internal' and n_tup_ins + n_tup_upd + n_tup_del > 0"
        )
    }


def lock_all_but(session: Session, batch: dict[str, Any]) -> None:
    """Lock every row of pyjobs, but that batch's, without waiting for anybody."""
    session.begin()
    for table in session.rows(
        "select tablename from pg_tables where schemaname = 'pyjobs_internal'"
    ):
        where = f"where id <> {batch['batch_id']}" if table["tablename"] == "batch" else ""
        session.do(f"select from pyjobs_internal.{table['tablename']} {where} for update nowait")
    session.rollback()


@pytest.mark.parametrize("emits", [False, True])
def test_recording_one_of_many_writes_and_locks_its_own_row_only(calls, a, b, emits):
    """What it emits is new, and so in nobody's way."""
    job = calls.enqueue(items=6, batch_size=2, stages=["one", "two"])
    batch, _ = calls.claim(job, 2)
    before = calls.rows("select xmin, xmax, ctid from pyjobs_internal.job")
    a.begin().record(batch, failed=[1], counters={"found": 3}, next_items=[1, 2] if emits else None)
    assert touched(a) == {"batch": 2 if emits else 1}
    lock_all_but(b, batch)
    assert calls.rows("select xmin, xmax, ctid from pyjobs_internal.job") != []
    a.commit()
    after = calls.rows("select xmin, xmax, ctid from pyjobs_internal.job")
    assert [row["ctid"] for row in after] == [row["ctid"] for row in before]
    assert [row["xmin"] for row in after] == [row["xmin"] for row in before]


def test_recording_one_of_many_takes_no_lock_that_another_recorder_takes(calls, a, b):
    _, (first, second, *_) = job_of(calls, 4)
    locks = (
        "select locktype, relation::regclass::text as relation, mode, "
        "coalesce(objid::text, transactionid::text, '') as object from pg_locks "
        "where pid = pg_backend_pid() and mode not in ('AccessShareLock', 'RowExclusiveLock')"
    )
    held = {}
    for session, batch in ((a, first), (b, second)):
        session.begin().record(batch)
        held[session] = [
            tuple(row.values())
            for row in session.rows(locks)
            if row["locktype"] not in ("virtualxid", "transactionid")
        ]
    assert held == {a: [], b: []}
    a.commit()
    b.commit()


def test_recorders_of_one_job_do_not_wait_for_each_other(calls, new_session):
    _, batches = job_of(calls, 8)
    sessions = [new_session() for _ in range(7)]
    for session, batch in zip(sessions, batches, strict=False):
        record = session.start(session.begin().record, batch)
        assert not session.waits_or_ends(record)
        assert not record.result(SOON)["job_done"]
    last = calls.start(calls.record, batches[7])
    assert calls.waits_or_ends(last)  # only the last one does
    for session in reversed(sessions):
        session.commit()
    assert last.result(SOON)["job_done"]


def test_a_claim_does_not_lock_what_another_has_just_claimed(calls, a, b, c):
    """One that looks before the other's claim commits, and comes to the row afterwards."""
    job = calls.enqueue(items=4)
    # A row is read, and then a policy asked, before the rest of the conditions and the lock.
    calls.do(
        "create schema gate;"
        "create function gate.pass() returns boolean language plpgsql as $$ begin"
        " if current_setting('application_name') = 'late' then"
        " perform pg_advisory_xact_lock_shared(42); end if; return true; end $$;"
        "alter table pyjobs_internal.batch enable row level security, force row level security;"
        "create policy gate on pyjobs_internal.batch using (gate.pass())"
    )
    c.begin().do("select pg_advisory_xact_lock(42)")
    b.begin().do("set local application_name = 'late'")
    claim = b.start(b.claim, job)
    b.waits_for(c)
    (batch,) = a.claim(job)
    c.rollback()
    (another,) = claim.result(SOON)
    assert another["batch_id"] != batch["batch_id"]
    record = a.start(a.record, batch)
    assert not a.waits_or_ends(record)
    record.result(SOON)
    b.commit()
    assert calls.audit() == []


@pytest.mark.parametrize("call", ["pause_job", "set_priority"])
def test_a_first_claim_in_a_long_transaction_does_not_hold_the_job(calls, a, b, call):
    job = calls.enqueue(items=2)
    a.begin().claim(job)
    arguments = {"pause_job": "%s", "set_priority": "%s, 5"}[call]
    change = b.start(b.value, f"select pyjobs.{call}({arguments})", job)
    assert not b.waits_or_ends(change)
    assert change.result(SOON) == "PENDING"
    a.commit()
    assert calls.status(job) == "STARTED"


# Operators' calls wait at most about a second: they come back though nobody lets go.


def in_the_way(call: Callable[[], Any], holder: Session) -> None:
    """The call gives up, and names the session that is in the way."""
    with pytest.raises(psycopg.Error) as info:
        call()
    assert info.value.sqlstate == "PJ006", info.value
    assert f"pid {holder.pid} " in (info.value.diag.message_detail or "")


def test_who_is_in_the_way_of_a_quarantine_or_a_forced_end_is_named(calls, a, b):
    for batches, hold in ((2, a.record), (1, a.record), (2, a.extend)):
        job, (batch, *_) = job_of(calls, batches)
        a.begin()
        hold(batch)
        in_the_way(lambda job=job: b.quarantine(job), a)
        in_the_way(lambda job=job: b.finalize(job, "FAILURE"), a)
        a.rollback()
        assert calls.status(job) == "STARTED"
        assert b.finalize(job, "SUCCESS")["transitioned"]


def test_who_claims_in_a_long_transaction_is_named(calls, a, b):
    job = calls.enqueue(items=2)
    a.begin().claim(job)
    in_the_way(lambda: b.quarantine(job), a)
    in_the_way(lambda: b.finalize(job, "FAILURE"), a)
    a.rollback()
    assert calls.status(job) == "PENDING"


def test_who_is_ending_the_job_is_in_the_way_of_a_cancel(calls, a, b):
    job, (batch,) = job_of(calls, 1)
    assert a.begin().record(batch)["job_done"]
    in_the_way(lambda: b.cancel(job), a)
    in_the_way(lambda: b.cancel(job, "0"), a)
    a.commit()
    assert b.cancel(job) == "SUCCESS"


@pytest.mark.parametrize("grace", ["0", "30 seconds"])
def test_a_result_in_flight_does_not_keep_a_cancel(calls, a, b, grace):
    job, (batch, _) = job_of(calls, 2)
    calls.enqueue(items=1)
    a.begin().record(batch)
    b.begin().extend(_)
    canceller = calls
    assert canceller.cancel(job, grace) == "CANCELING"
    assert canceller.claim(job) == []
    b.rollback()
    a.rollback()
    if grace == "0":
        calls.reap()
    else:
        calls.record(batch)
        calls.record(_)
    assert calls.ends_of(job) == ["REVOKED"]


OPERATORS = {
    "pause_job": "select pyjobs.pause_job(%s)",
    "resume_job": "select pyjobs.resume_job(%s)",
    "set_priority": "select pyjobs.set_priority(%s, 3)",
    "cancel_job": "select pyjobs.cancel_job(%s)",
    "finalize_job": "select pyjobs.finalize_job(%s)",
    "forced": "select pyjobs.finalize_job(%s, 'FAILURE')",
    "quarantine_job": "select pyjobs.quarantine_job(%s, 'why')",
}


@pytest.mark.parametrize("call", OPERATORS)
def test_who_holds_the_job_is_named_by_every_operators_call(calls, a, b, call):
    job = calls.enqueue(items=1)
    a.begin().do("select pyjobs.set_priority(%s, 7)", job)
    in_the_way(lambda: b.do(OPERATORS[call], job), a)
    a.commit()
    assert calls.status(job) == "PENDING"


@pytest.mark.parametrize("call", ["retry_job", "resolve_job"])
def test_who_holds_the_job_is_named_by_what_starts_it_again(calls, a, b, call):
    job, (batch,) = job_of(calls, 1)
    if call == "retry_job":
        calls.record(batch)
        a.begin().retry(job)
        in_the_way(lambda: b.retry(job), a)
    else:
        calls.quarantine(job)
        a.begin().resolve(job)
        in_the_way(lambda: b.resolve(job), a)
    a.rollback()


def test_a_reaper_says_what_it_could_not_do_and_goes_on(calls, a, b):
    calls.settable_clock()
    stuck, (lost, batch) = job_of(calls, 2, max_attempts=1)
    free, _ = job_of(calls, 1)
    calls.pass_time("2 minutes")
    a.begin().record(batch)
    actions = {row["job_id"]: row["action"] for row in b.reap()}
    assert actions == {stuck: "postponed", free: "expired"}
    a.commit()
    assert lost["batch_id"] in [row["batch_id"] for row in b.reap()]
    assert calls.status(stuck) == "SUCCESS"


def test_who_makes_a_job_with_the_key_is_in_the_way_of_a_retry(calls, a, b):
    job = calls.enqueue(items=1, dedupe_key="once")
    calls.finish(job)
    a.begin().enqueue(items=1, dedupe_key="once")
    in_the_way(lambda: b.retry(job), a)
    a.rollback()
    assert b.retry(job) == "RETRY"


def test_a_result_recorded_in_a_savepoint_is_named_too(calls, a, b):
    job, (batch, _) = job_of(calls, 2)
    a.begin().do("savepoint s")
    a.record(batch)
    in_the_way(lambda: b.quarantine(job), a)
    a.do("release savepoint s")
    in_the_way(lambda: b.quarantine(job), a)
    a.rollback()


def test_a_look_does_not_hold_the_batch_that_it_found(calls, a, b):
    """Those that it finds were touched and left alone again, so it had to try their locks."""
    _, (first, *others) = job_of(calls, 3)
    for batch in others:
        a.begin().extend(batch)
        a.rollback()
    assert not a.begin().record(first)["job_done"]
    record = b.start(b.record, others[0])
    assert not b.waits_or_ends(record)
    assert not record.result(SOON)["job_done"]
    extend = b.start(b.extend, others[1])
    assert not b.waits_or_ends(extend)
    a.commit()
    assert calls.record(others[1])["job_done"]


def test_a_finisher_of_a_stage_sees_the_cancel_that_came_while_he_waited(calls, a, b, c):
    """He would hand over to a batch that is never claimed, and nothing is leased any more."""
    job = calls.enqueue(items=2, stages=["one", "two"], seal=False)
    first, second = calls.claim(job, 2)
    calls.add(job, [1], "two")
    calls.seal(job)
    a.begin().record(first)
    record = b.start(b.record, second)
    b.waits_for(a)
    assert c.cancel(job) == "CANCELING"
    a.commit()
    assert record.result(SOON)["job_status"] == "REVOKED"
    assert calls.ends_of(job) == ["REVOKED"]


def test_a_purge_does_not_wait_for_a_worker_who_is_back(calls, a, b):
    calls.settable_clock()
    calls.enqueue(items=1)
    assert len(calls.ask("back", "default")) == 1
    calls.pass_time("2 days")
    a.begin().ask("back", "default")
    purge = b.start(b.value, "select pyjobs.purge_jobs('1 hour')")
    assert not b.waits_or_ends(purge)
    assert purge.result(SOON) == 0
    a.commit()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("call", ["pause_queue", "resume_queue"])
def test_who_changes_the_queue_is_named(calls, a, b, call, known):
    if known:
        calls.do("select pyjobs.resume_queue('default')")
    a.begin().do("select pyjobs.pause_queue('default')")
    in_the_way(lambda: b.do(f"select pyjobs.{call}('default')"), a)
    a.rollback()


WRITES = [
    "select pyjobs.record_batch(%(batch)s, 1)",
    "select pyjobs.record_batches(array[%(batch)s], array[1])",
    "select pyjobs.record_and_claim(%(batch)s, 1, 'w')",
    "select pyjobs.release_batch(%(batch)s, 1, 'broken')",
    "select pyjobs.extend_lease(%(batch)s, 1)",
    "select pyjobs.claim_next_job('w')",
    "select pyjobs.claim_next_batch(%(job)s, 'w')",
    "select pyjobs.claim_jobs('w')",
    "select pyjobs.cancel_job(%(job)s)",
    "select pyjobs.finalize_job(%(job)s)",
    "select pyjobs.finalize_job(%(job)s, 'FAILURE')",
    "select pyjobs.quarantine_job(%(job)s, 'why')",
    "select pyjobs.resolve_job(%(job)s, 'RETRY', 'why')",
    "select pyjobs.retry_job(%(job)s)",
    "select pyjobs.reap()",
    "select pyjobs.reap_leases()",
    "select pyjobs.add_items(%(job)s, '[1]')",
    "select pyjobs.seal_job(%(job)s)",
    "select pyjobs.release_job(%(job)s)",
]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_levels_at_which_the_last_two_would_miss_each_other_are_refused(calls, a, level):
    job, (batch, _) = job_of(calls, 2)
    for query in WRITES:
        a.do(f"begin isolation level {level}")
        with refused("PJ007"):
            a.conn.execute(query.encode(), {"job": job, "batch": batch["batch_id"]})
        a.rollback()
    assert calls.progress(job)["stages"][0]["leased"] == 2


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_last_record_waits_for_a_claim_of_the_only_other_batch(calls, a, b, end):
    """The claimer might record it in the same transaction, having looked before."""
    job = calls.enqueue(items=2)
    (mine,) = calls.claim(job)
    (other,) = a.begin().claim(job)
    record = b.start(b.record, mine)
    b.waits_for(a)
    getattr(a, end)()
    assert not record.result(SOON)["job_done"]
    if end == "rollback":
        (other,) = calls.claim(job)
    assert calls.record(other)["job_done"]


def test_the_last_record_waits_for_a_claim_that_is_recorded_with_it(calls, a, b):
    job = calls.enqueue(items=2)
    (mine,) = calls.claim(job)
    (other,) = a.begin().claim(job)
    record = b.start(b.record, mine)
    b.waits_for(a)
    assert not a.record(other)["job_done"]
    a.commit()
    assert record.result(SOON)["job_done"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_items_on_their_way_do_not_come_into_a_job_that_is_final(calls, a, b, end):
    """The cancel did not wait for them; so the last lease leaves the end to the reaper."""
    job = calls.enqueue(items=1, seal=False)
    (batch,) = calls.claim(job)
    a.begin().add(job, [1, 2])
    assert b.cancel(job) == "CANCELING"
    assert calls.record(batch)["job_status"] == "CANCELING"
    assert [row["action"] for row in b.reap()] == ["postponed"]
    getattr(a, end)()
    assert [row["action"] for row in b.reap()] == ["revoked"]
    assert calls.progress(job)["stages"][0]["total"] == (3 if end == "commit" else 1)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("by", ["release", "reap"])
def test_a_batch_that_comes_back_is_offered_again(calls, a, b, by, end):
    """The claim that took the last one had withdrawn the offer."""
    calls.settable_clock()
    calls.enqueue(items=1)
    (batch,) = calls.ask("w", "default")
    assert calls.ask("w", "default") == []
    calls.pass_time("2 minutes")
    a.begin()
    if by == "release":
        a.release(batch)
    else:
        a.reap()
    ask = b.start(b.ask, "another", "default")
    assert not b.waits_or_ends(ask)
    assert ask.result(SOON) == []
    getattr(a, end)()
    assert len(calls.ask("w", "default")) == (end == "commit")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_last_two_do_not_wait_for_each_other_around_a_cancel(calls, a, b, c, end):
    """One became the ender by the old rule and waits; the other looks by the cancel's."""
    job, (first, second) = job_of(calls, 2)
    c.begin().cancel(job)  # keeps the first
    one = b.start(b.record, first)
    b.waits_for(c)
    other = a.start(a.record, second)
    a.waits_for()
    getattr(c, end)()
    done = [future.result(SOON)["job_done"] for future in (one, other)]
    assert sorted(done) == [False, True]
    assert calls.ends_of(job) == ["REVOKED" if end == "commit" else "SUCCESS"]


def test_the_closer_of_a_cancelled_lease_leaves_the_job_to_who_waits_for_others(
    calls, new_session, a, b, c
):
    """a waits by the old rule, and next he would wait for b: so b must not wait for him."""
    d = new_session()
    job, (first, second, third) = job_of(calls, 3)
    d.begin().extend(third)
    c.begin().cancel(job)  # keeps the first
    one = b.start(b.record, first)
    b.waits_for(c)
    other = a.start(a.record, second)
    a.waits_for(d)
    c.commit()
    b.waits_or_ends(one)
    d.record(third)
    d.commit()
    assert not one.result(SOON)["job_done"]
    assert other.result(SOON)["job_done"]
    assert calls.ends_of(job) == ["REVOKED"]


def test_who_has_not_begun_to_wait_when_a_cancel_comes_does_not_wait(calls, a, b, c, stops):
    """The other waits for him already."""
    job, (first, second) = job_of(calls, 2)
    stops.before("await_obstacle", a)
    c.begin().cancel(job)  # keeps the first
    one = b.start(b.record, first)
    b.waits_for(c)
    other = a.start(a.record, second)
    a.waits_for(stops.holder)
    c.commit()
    b.waits_for(a)
    stops.go("await_obstacle", a)
    assert not other.result(SOON)["job_done"]
    assert one.result(SOON)["job_done"]
    assert calls.ends_of(job) == ["REVOKED"]


def test_who_hands_over_when_a_cancel_comes_does_not_wait(calls, new_session, a, b, c, stops):
    """As before, with the last of a stage, who would wait for one of the next."""
    job, (first, second) = two_stages(calls, 1)
    stops.before("await_obstacle", a)
    b.begin().extend(second)
    one = a.start(a.record, first)
    a.waits_for(stops.holder)
    assert c.cancel(job) == "CANCELING"  # all are in flight, so it keeps none
    other = b.start(b.record, second)
    b.waits_for(a)
    stops.go("await_obstacle", a)
    assert not one.result(SOON)["job_done"]
    assert other.result(SOON)["job_done"]
    b.commit()
    assert calls.ends_of(job) == ["REVOKED"]
