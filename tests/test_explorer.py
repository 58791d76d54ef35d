"""The explorer: it changes nothing but by its yields, it repeats, it finds, and pyjobs passes.

Those marked ``schedules`` are a bounded share of what ``make explore`` does for longer.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pglast
import pytest

from pyjobs import embedded
from tests.explorer import progress, scenarios, search
from tests.explorer.__main__ import main
from tests.explorer.acts import ACTIONS
from tests.explorer.check import Checker, _reaped
from tests.explorer.explore import Explorer
from tests.explorer.instrument import FOLDERS, instrument, strip, unbound
from tests.explorer.report import from_line, to_line
from tests.explorer.rules import fingerprint
from tests.explorer.run import Plan
from tests.explorer.scenes import named
from tests.explorer.sessions import SETTINGS, Database

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SHIPPED = {
    f"{folder}/{path.name}": path.read_text("utf-8")
    for folder in FOLDERS
    for path in sorted((ROOT / "sql" / folder).glob("*.sql"))
}

# All that is public but for the readers.
PUBLIC = {
    name.partition("/")[2].removesuffix(".sql")
    for name in SHIPPED
    if not name.startswith("internal/")
}


@pytest.fixture(scope="module")
def server() -> Iterator[embedded.EmbeddedServer]:
    """A server of its own: no deadlock detector, no vacuum, no log."""
    with embedded.server(settings=SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def explorer(server) -> Iterator[Explorer]:
    made = Explorer(Database(server.url(), "explorer"))
    yield made
    made.close()


def test_without_its_yields_the_copy_is_what_ships():
    copy = instrument(ROOT)
    assert copy.texts.keys() == SHIPPED.keys()
    for name, text in copy.texts.items():
        assert strip(text) == SHIPPED[name], name


def test_what_a_scene_names_is_there(explorer):
    """They name jobs and batches by number. In a scene that misses them nothing meets."""
    missed = {
        scenario.name
        for scenario in named()
        for call in explorer.play(scenario, [])[0].calls
        if call.answer is not None and call.answer.sqlstate == "PJ004"
    }
    # Its job is purged.
    assert missed == {"set-purge-and-again"}


def test_every_statement_has_a_yield():
    """Counted in the parse tree of the copy: each statement stands behind an ASSERT of ours."""
    total = 0
    for name, text in instrument(ROOT).texts.items():
        if "language plpgsql" not in text:
            continue
        head = text[text.index("create or replace") : text.rindex("$$") + 2].split("\n$$;", 1)[0]
        shipped, yields = _count(head if head.endswith("$$") else head + "\n$$")
        assert shipped == yields > 0, name
        total += shipped
    assert total == len(instrument(ROOT).places) > 600


def _count(head: str) -> tuple[int, int]:
    text = re.sub(r"\bpyjobs(?:_internal)?\.\w+(?![\w%(])", "text", head)
    (parsed,) = pglast.parse_plpgsql(re.sub(r"\bpyjobs(?:_internal)?\.", "public.", text) + ";")
    counted = {"shipped": 0, "yields": 0}

    def walk(node: object, top: bool = False) -> None:
        if isinstance(node, list):
            for each in node:
                walk(each)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key == "PLpgSQL_stmt_assert":
                    counted["yields"] += 1
                elif key.startswith("PLpgSQL_stmt_") and value.get("lineno"):
                    counted["shipped"] += 1
                walk(value)

    walk(parsed["PLpgSQL_function"]["action"])
    # The block of the function itself has no place before it.
    return counted["shipped"] - 1, counted["yields"]


def test_only_bounds_are_handed_over_to_the_scheduler():
    for name, text in SHIPPED.items():
        for old, new in zip(text.split("\n"), unbound(text).split("\n"), strict=True):
            if old != new:
                back = new.replace("lock_timeout = '0'", "lock_timeout = '500ms'")
                assert back.replace(" or query_canceled", "") == old, name


def test_a_schedule_is_a_line():
    choices: search.Choices = [(0, 5), (2, "!"), (1, 12)]
    assert from_line(to_line("last-two", choices)) == ("last-two", choices)
    assert from_line("last-two:seed=7") == ("last-two", 7)


def test_the_scenarios_have_names_of_their_own():
    names = [s.name for s in scenarios.every()]
    assert len(names) == len(set(names)) > 1500


def test_each_public_function_that_changes_something_has_a_scenario():
    """The list is that of the folders: a new function without an action fails here."""
    assert {f for ops in _actions().values() for f in ops} == PUBLIC


def test_each_pair_of_them_has_a_scenario_on_one_job():
    covered = set()
    for scenario in scenarios.pairs():
        assert scenario.jobs == 1
        one, two = (
            next(op.function for op in ops if op.kind == "call") for ops in scenario.sessions
        )
        covered.add(frozenset((one, two)))
    wanted = {frozenset(p) for p in itertools.combinations_with_replacement(sorted(PUBLIC), 2)}
    assert wanted - covered == set()


def test_the_last_two_and_three_end_in_every_way():
    """Committed, rolled back and again, rolled back for good, rolled back to a savepoint."""
    names = {s.name for s in scenarios.named()}
    ways = ["commit", "again", "never", "undone"]
    for count in (2, 3):
        for ends in itertools.combinations_with_replacement(ways, count):
            assert f"last-{count}-{'-'.join(ends)}" in names


def _actions() -> dict[str, list[str]]:
    return {
        name: [op.function for op in make(1) if op.kind == "call"]
        for name, (make, _) in ACTIONS.items()
    }


def test_a_deadlock_is_excused_only_where_callers_made_it():
    """Workers' calls on one job make none, unless two sessions post the same batch."""
    excused = {s.name for s in scenarios.named() if s.may_deadlock}
    assert not any(s.may_deadlock for s in scenarios.pairs())
    assert {"two-jobs-opposite", "add-and-seal-twice", "kept-stage-all"} <= excused
    free = {"two-in-one-transaction", "record-two-each-crosswise", "record-in-turns", "last-three"}
    assert not free & excused
    assert not {"kept-stage-high", "kept-stage-crosswise", "extend-and-record-each"} & excused


def test_a_schedule_repeats(explorer):
    scenario = scenarios.find("seal-against-the-last-two")
    first = explorer.play_seed(scenario, 11)
    second, problems = explorer.play(scenario, first.choices)
    assert not problems
    assert [s.label for s in second.steps] == [s.label for s in first.steps]


def test_steps_are_counted_afresh_when_sessions_were_interrupted(explorer):
    """A signal between a step's number and its notice: all that followed waited at a gate."""
    scenario = scenarios.find("last-two")
    explorer.play(scenario, [])
    runner = explorer._runner
    runner.links[0].value("select nextval('pg_temp.explorer_step')")
    assert runner._unwind()
    assert explorer.play(scenario, [(0, 2), (1, 2)])[1] == []


def test_leaving_out_equivalent_schedules_loses_no_end(explorer):
    """The ends that are reached are those of all schedules, none left out."""
    runner = explorer._runner
    scenario = scenarios.find("last-two")
    ends = []
    for prune in (True, False):
        tally = search.Tally()
        outcomes = search.bounded(scenario, runner.run, 1, tally, prune=prune)
        ends.append({fingerprint(o.states[-1]) + _said(o) for o in outcomes})
        assert tally.diverged == 0
    assert ends[0] == ends[1]


def _said(outcome) -> str:
    return str([(c.session, c.answer.rows, c.answer.sqlstate) for c in outcome.calls])


def test_a_session_that_waits_is_known_by_its_wait(explorer):
    """The second of the last two waits for the first, which has not committed."""
    outcome = explorer._runner.run(scenarios.find("last-two"), Plan([(0, 3), (1, 40), (0, 40)]))
    waits = [s for s in outcome.steps if s.waits]
    assert [s.session for s in waits] == [1]
    assert [s.session for s in outcome.steps if s.kind == "resume"] == [1]
    assert [c.answer.rows[0]["job_done"] for c in outcome.calls] == ["f", "t"]


def _edit(outcome, table, number, **values):
    for row in outcome.states[-1][table]:
        if row["id" if table != "stage" else "no"] == number:
            row.update(values)


def _rule_1(outcome):
    later = copy.deepcopy(outcome.states[-1])
    later["job"][0]["finished_reason"] = "another"
    outcome.states.append(later)


def _rule_2(outcome):
    outcome.states[-2]["job"][0].update(status="CANCELING")


def _rule_3(outcome):
    was = outcome.states[-1]["job"][0]
    end = {"id": 9, "job_id": 1, "run": 1, "from_status": "STARTED", "to_status": was["status"]}
    outcome.states[-1]["history"] = [end]


def _rule_4(outcome):
    _edit(outcome, "stage", 1, succeeded=3)


def _rule_5(outcome):
    outcome.calls.append(copy.copy(outcome.calls[0]))


def _rule_6(outcome):
    """The lease was another's when this was recorded."""
    for state in outcome.states[:-1]:
        state["batch"][1]["lease_epoch"] = 2
    outcome.states[-1]["batch"][1]["lease_epoch"] = 2


def _rule_7(outcome):
    _edit(outcome, "job", 1, status="PENDING", finished_at=None, finished_by=None)


def _rule_8(outcome):
    """The first of two waits although the other's batch is free."""
    place = next(s.place for s in outcome.steps if s.place and s.place.function == "close_batch")
    first = next(s for s in outcome.steps if s.session == 0 and s.place)
    first.place, first.waits = place, True


def _rule_9(outcome):
    for state in outcome.states:
        state["job"][0]["paused"] = True


def _frame(outcome):
    """A record changed another batch as well."""
    outcome.states[1]["batch"][1]["error"] = "who was that?"


def _claim(outcome):
    """A claim with nobody else at work was given less than there was."""
    outcome.calls[0].answer.rows = []


@pytest.mark.parametrize(
    ("doctor", "line", "says"),
    [
        (_rule_1, "last-two:a99.b99", "which is final"),
        (_rule_2, "last-two:a99.b99", "went from CANCELING to SUCCESS"),
        (_rule_3, "last-two:a99.b99", "run 1 has 2 ends"),
        (_rule_4, "last-two:a99.b99", "stage 1: written"),
        (_rule_5, "last-two:a99.b99", "was taken 2 times"),
        (_rule_6, "last-two:a99.b99", "said recorded, and it is not"),
        (_rule_7, "last-two:a99.b99", "nobody has ended it"),
        (_rule_8, "last-two:a99.b99", "waits with its record, although batch 2 is free"),
        (_rule_9, "pair-claim-claim-pending:a99.b99", "that was not to be served"),
        (_frame, "last-two:a99.b99", "changed error of batch 2"),
        (_claim, "pair-claim-claim-pending:a99.b99", "was given"),
    ],
    ids=lambda v: v.__name__.strip("_") if callable(v) else "",
)
def test_the_judge_sees_what_is_wrong(explorer, doctor, line, says):
    """A right outcome, made wrong in one place."""
    name, choices = from_line(line)
    outcome, problems = explorer.play(scenarios.find(name), choices)
    assert not problems
    wrong = copy.deepcopy(outcome)
    doctor(wrong)
    problems = Checker(explorer._runner).check(wrong)
    assert any(says in p for p in problems), problems


def test_the_judge_sees_what_is_lost(explorer):
    """A dead worker's batch stays leased; a document disagrees with the tables."""
    outcome, _ = explorer.play(scenarios.find("pair-record-record-two"), [])
    before = copy.deepcopy(outcome.states[0])
    explorer._runner.control.set_scene(outcome.scenario.setup)
    assert list(_reaped(before, before))
    assert not list(progress.wrong(explorer._runner.control, before))
    before["batch"][0]["state"] = "pending"
    assert any("job_progress" in p for p in progress.wrong(explorer._runner.control, before))


@pytest.mark.parametrize(
    "line",
    ["same-batch-among-several:c12.b24", "pause-and-record:a2.b10", "two-jobs-opposite:a8.b9"],
)
def test_the_server_itself_reports_a_deadlock_that_callers_made(explorer, line):
    """Whoever closed the circle: its own detector finds it, and one is refused."""
    name, choices = from_line(line)
    outcome, problems = explorer.play(scenarios.find(name), choices)
    assert not problems
    refused = [c.answer.sqlstate for c in outcome.calls if c.answer.sqlstate == "40P01"]
    assert len(refused) == bool(outcome.detected) <= 1
    if name != "two-jobs-opposite":
        assert outcome.detected


@pytest.mark.parametrize(
    "line",
    [
        # Two recorders waited for each other, each by another rule, around a cancel with a grace.
        "cancel-against-the-last-two:c6.a10",
        # A cancel, and an end by force, whose job is ended and purged while they wait.
        "scene-20004543:c4.d5",
        "scene-30037966:c12.d8",
        # A record with items for the next stage, whose job is ended and purged meanwhile.
        "scene-80000420:c5.b7.d30",
        # A cancel, and the lease that it kept, in one transaction.
        "kept-cancel-release:a28.b6.a2",
        # Of three that record, one comes while another tries a lock, or has just waited for it.
        "last-3-again-never-never:c1.b6.a7.c9.a9.c1.a16",
        "last-3-never-undone-undone:a3.c4.b41",
        # A record, and a claim that came late for its batch and locked it all the same.
        "priority-with-claim-claim+linger:b3.c6.a4.b5.c1.a32.b9.a5",
    ],
)
def test_schedules_that_once_broke_a_rule_break_none(explorer, line):
    """What was wrong with each stands beside it."""
    name, choices = from_line(line)
    _, problems = explorer.play(scenarios.find(name), choices)
    assert not problems


def test_a_run_that_falls_short_has_failed(capsys):
    assert main(["run", "--schedules", "9", "--seconds", "0", "--workers", "1"]) == 1
    assert "FAILED: fewer than 9 schedules" in capsys.readouterr().out


@pytest.mark.schedules
@pytest.mark.timeout(0)
def test_no_schedule_breaks_a_rule(explorer):
    """First the scenarios in turn, systematically, then random scenes."""
    seconds = float(os.environ.get("PYJOBS_EXPLORE", "120"))
    until = time.monotonic() + seconds
    half = time.monotonic() + seconds * 0.7
    every = scenarios.every()
    failures = list(explorer.systematically(every, 1, limit=60, until=half))
    seed = int(os.environ.get("PYJOBS_EXPLORE_SEED", "0"))
    failures += explorer.at_random(itertools.count(seed), until, list(scenarios.named()))
    print(explorer.total)
    assert not failures, "\n\n".join(f"{f.line}\n{f}" for f in failures)
    assert explorer.total.schedules > seconds
