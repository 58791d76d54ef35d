"""Every race with real sessions, in both directions, decided by the order of steps.

A step of one session that has to wait for another's runs in the background, and the test goes on
when the server says that it really waits for a lock; or it is stopped at a chosen function (see
tests/support/sessions.py). No test waits for a time. After each, the rules are recomputed from the
tables (tests/support/rules.py).

The tests that take a ``design`` run on pyjobs, where they pass, and on the unrepaired design that
it replaces, where they must fail.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.rules import assert_rules
from tests.support.sessions import SOON, Session, Stops, make_operators_patient
from tests.unrepaired.designs import Pyjobs, Unrepaired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unrepaired.designs import Design


@pytest.fixture
def new_session(connect, background, admin) -> Callable[[], Session]:
    return lambda: Session(connect(), background, admin)


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
def calls(new_session, db) -> Iterator[Session]:
    """The session that sets the scene and looks at the end. Afterwards the rules must hold."""
    session = new_session()
    yield session
    assert_rules(db)


@pytest.fixture
def patient(db) -> None:
    """Operators' calls wait as long as it takes."""
    make_operators_patient(db)


@pytest.fixture
def stops(db, connect) -> Stops:
    return Stops(db, connect())


def refused(sqlstate: str) -> Any:
    """As pytest.raises, for an error with this SQLSTATE."""
    return pytest.raises(psycopg.Error, check=lambda error: error.sqlstate == sqlstate)


def job_of(calls: Session, batches: int, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """A job of so many batches of one item, all of them leased."""
    job = calls.enqueue(items=batches, **options)
    return job, calls.claim(job, batches)


# The repair that pyjobs starts from: the status is not saved together with the progress.


def unlike_the_unrepaired_design(caught: str) -> Callable[..., Any]:
    """Run the test on both designs; on the unrepaired one it must fail, saying ``caught``."""

    def decorate(test: Callable[[Design], None]) -> Callable[..., None]:
        @pytest.mark.parametrize("made", [Pyjobs, Unrepaired], ids=["pyjobs", "unrepaired"])
        @functools.wraps(test)
        def both(made, new_session, patient, db) -> None:
            design = made(new_session)
            if made is Unrepaired:
                with pytest.raises(AssertionError, match=caught):
                    test(design)
            else:
                test(design)
                assert_rules(db)

        del both.__wrapped__  # so that pytest sees these arguments
        return both

    return decorate


@unlike_the_unrepaired_design(caught="overwrote the revocation")
def test_a_slow_worker_does_not_bring_a_revoked_job_back(design):
    job = design.job(batches=1)
    slow, canceller = design.worker(job), design.canceller(job)
    slow.read()
    canceller.read()
    canceller.save()
    canceller.commit()
    assert design.status(job) == "REVOKED"
    ended = design.finished_at(job)
    slow.save()
    slow.commit()
    assert design.status(job) == "REVOKED", "the slow worker overwrote the revocation"
    assert design.finished_at(job) == ended


@unlike_the_unrepaired_design(caught="shown as running")
def test_a_late_result_does_not_make_a_finished_job_run_again(design):
    job = design.job(batches=2)
    first, second = design.worker(job), design.worker(job)
    late = design.again(first)
    late.read()
    for worker in (first, second):
        worker.read()
        worker.save()
        worker.commit()
    assert design.status(job) == "SUCCESS"
    late.save()
    late.commit()
    assert design.status(job) == "SUCCESS", "a finished job is shown as running"
    assert design.processed(job) == 2


@unlike_the_unrepaired_design(caught="overwrote the success")
def test_a_cancel_does_not_overwrite_a_success_just_committed(design):
    job = design.job(batches=1)
    worker, canceller = design.worker(job), design.canceller(job)
    canceller.read()
    worker.read()
    worker.save()
    worker.commit()
    assert design.status(job) == "SUCCESS"
    canceller.save()
    canceller.commit()
    assert design.status(job) == "SUCCESS", "the cancel overwrote the success"


@unlike_the_unrepaired_design(caught="lost a batch")
def test_two_results_at_once_are_both_counted(design):
    job = design.job(batches=3)
    first, second = design.worker(job), design.worker(job)
    first.read()
    second.read()
    first.save()
    first.commit()
    second.save()
    second.commit()
    assert design.processed(job) == 2, "the count lost a batch"


@unlike_the_unrepaired_design(caught="counted twice")
def test_a_result_that_is_delivered_again_counts_once(design):
    job = design.job(batches=3)
    worker = design.worker(job)
    worker.read()
    worker.save()
    worker.commit()
    again = design.again(worker)
    again.read()
    assert not again.save(), "a result was counted twice"
    again.commit()
    assert design.processed(job) == 1


@unlike_the_unrepaired_design(caught="the document says")
def test_the_document_and_the_status_are_one_truth(design):
    job = design.job(batches=2)
    worker, canceller = design.worker(job), design.canceller(job)
    worker.read()
    worker.save()
    worker.commit()
    canceller.read()
    canceller.save()
    canceller.commit()
    shown = design.shown(job)
    assert shown == design.status(job), f"the document says {shown}"


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
    """Even where other batches are open: by the old rule one of those would have looked after it."""
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
        stops.before("obstacle_quiet", session)
        looks[session] = session.start(session.begin().record, batch)
        session.waits_for(stops.holder)
    ender, other = (a, b) if first_to_look == "a" else (b, a)
    stops.go("obstacle_quiet", ender)
    ender.waits_for(other)
    stops.go("obstacle_quiet", other)
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
    """c goes home because b waits; then b's savepoint is rolled back, and a later record ends it."""
    job, (first, second, third) = job_of(calls, 3)
    a.begin().record(first)
    b.begin().do("savepoint s")
    c.begin().record(third)
    record = b.start(b.record, second)
    b.waits_for()
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
