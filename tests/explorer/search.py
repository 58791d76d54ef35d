"""Chooses schedules: all with few preemptions, equivalent ones left out, then random ones.

Two schedules are equivalent when they order every two steps alike of which one touches what the
other touches (``_CLASH``); then each session sees the same in both. Of the schedules that begin
with equivalent beginnings only one is gone on with.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from typing import TYPE_CHECKING, Any

from tests.explorer.run import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.explorer.run import Outcome, Scenario, Step

Choices = list[tuple[int, "int | str"]]

# Which kinds of access (see instrument.py) to one table do not commute.
_CLASH = {
    "R": ("C",),
    "X": ("W", "C"),
    "W": ("W", "X", "S", "C"),
    "S": ("W", "C"),
    "C": ("R", "X", "W", "S", "C"),
}
_MASK = (1 << 64) - 1


class _Order:
    """The order of steps that do not commute, as a number that equivalent orders share."""

    def __init__(self, sessions: int) -> None:
        self._own = [(0,) * sessions for _ in range(sessions)]
        self._seen: dict[tuple[str, str], tuple[int, ...]] = {}
        self.number = 0

    def peek(self, step: Step) -> int:
        """What the number will be when this step has been taken."""
        return (self.number + self._event(step)[0]) & _MASK

    def add(self, step: Step) -> None:
        event, clock = self._event(step)
        self.number = (self.number + event) & _MASK
        self._own[step.session] = clock
        for effect in step.effects:
            before = self._seen.get(effect)
            self._seen[effect] = _join(before, clock) if before else clock

    def _event(self, step: Step) -> tuple[int, tuple[int, ...]]:
        clock = self._own[step.session]
        for table, how in step.effects:
            for other in _CLASH[how]:
                seen = self._seen.get((table, other))
                if seen:
                    clock = _join(clock, seen)
        mine = list(clock)
        mine[step.session] = self._own[step.session][step.session] + 1
        clock = tuple(mine)
        return hash((step.label, clock)) & _MASK, clock


def _join(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, a, b))


@dataclasses.dataclass
class Tally:
    """What was done."""

    schedules: int = 0
    pruned: int = 0
    diverged: int = 0
    preemptions: int = 0  # the bound that was completed
    complete: bool = False  # nothing is left, whatever the bound


def bounded(
    scenario: Scenario,
    run: Callable[[Scenario, Any], Outcome],
    bound: int,
    tally: Tally,
    *,
    limit: int | None = None,
    prune: bool = True,
) -> Iterator[Outcome]:
    """Every schedule with up to ``bound`` preemptions, those with fewer first."""
    sessions = len(scenario.sessions)
    seen: dict[tuple[int, int], int] = {}
    levels: list[deque[tuple[Choices, list[str]]]] = [deque() for _ in range(bound + 2)]
    levels[0].append(([], []))
    for cost in range(bound + 1):
        while levels[cost]:
            if limit is not None and tally.schedules >= limit:
                return
            choices, expected = levels[cost].popleft()
            outcome = run(scenario, Plan(choices))
            tally.schedules += 1
            if [s.label for s in outcome.steps[: len(expected)]] != expected:
                tally.diverged += 1
                outcome.diverged = (expected, [s.label for s in outcome.steps])
            fixed = len(expected) + 1 if choices else 0
            _branch(outcome, fixed, cost, levels, seen, tally, sessions, prune=prune)
            yield outcome
        tally.preemptions = cost
    tally.complete = not levels[bound + 1]


def _branch(
    outcome: Outcome,
    fixed: int,
    cost: int,
    levels: list[deque[tuple[Choices, list[str]]]],
    seen: dict[tuple[int, int], int],
    tally: Tally,
    sessions: int,
    *,
    prune: bool,
) -> None:
    steps = outcome.steps
    order = _Order(sessions)
    following = _following(steps, sessions)
    for at, step in enumerate(steps):
        if at >= fixed and step.kind in ("step", "timeout"):
            alternatives: list[tuple[int, str]] = [
                (s, "step") for s in step.runnable if (s, step.kind) != (step.session, "step")
            ]
            alternatives += [
                (s, "timeout") for s in step.bounded if (s, step.kind) != (step.session, "timeout")
            ]
            for session, kind in alternatives:
                extra = 0
                if kind == "timeout":
                    extra = 1 if step.runnable else 0
                elif step.current is not None and session != step.current:
                    extra = 1
                if cost + extra >= len(levels):
                    continue
                next_step = following[at][session]
                # To stop before what nobody else can see is to stop before what comes after it.
                if prune and extra and kind == "step" and not _shows(step, following[at]):
                    continue
                if prune and kind == "step" and next_step is not None:
                    key = (order.peek(steps[next_step]), session)
                    if seen.get(key, len(levels)) <= cost + extra:
                        tally.pruned += 1
                        continue
                    seen[key] = cost + extra
                before = dataclasses.replace(outcome, steps=steps[:at]).choices
                choice: tuple[int, int | str] = (session, "!" if kind == "timeout" else 1)
                levels[cost + extra].append(([*before, choice], [s.label for s in steps[:at]]))
        order.add(step)
        if prune and step.kind == "step":
            key = (order.number, step.session)
            seen[key] = min(seen.get(key, len(levels)), cost)


def _following(steps: list[Step], sessions: int) -> list[list[int | None]]:
    """For each position, the next step of each session from there on."""
    found: list[list[int | None]] = []
    following: list[int | None] = [None] * sessions
    for at in range(len(steps) - 1, -1, -1):
        if steps[at].kind == "step":
            following = [*following]
            following[steps[at].session] = at
        found.append(following)
    found.reverse()
    return found


def _shows(step: Step, following: list[int | None]) -> bool:
    """Whether the session that is to be interrupted is about to do what others can see."""
    return step.session != step.current or bool(step.effects)


class Dice:
    """Random priorities, changed at random steps (after PCT); waits are cut off now and then."""

    def __init__(self, seed: int, sessions: int, length: int) -> None:
        self._random = random.Random(seed)
        self._order = list(range(sessions))
        self._random.shuffle(self._order)
        changes = self._random.choice((1, 1, 2, 2, 3, 4, 6))
        self._changes = sorted(self._random.randrange(1, max(length, 2)) for _ in range(changes))
        self._cut_off = self._random.choice((0.0, 0.05, 0.3))
        self._taken = 0

    def choose(
        self, runnable: list[int], bounded: list[int], current: int | None
    ) -> tuple[int, int | str | None]:
        if bounded and (not runnable or self._random.random() < self._cut_off):
            return self._random.choice(bounded), "!"
        while self._changes and self._taken >= self._changes[0]:
            self._changes.pop(0)
            top = next(s for s in self._order if s in runnable)
            self._order.remove(top)
            self._order.append(top)
        chosen = next(s for s in self._order if s in runnable)
        return chosen, (self._changes[0] - self._taken) if self._changes else None

    def passed(self, session: int, steps: int) -> None:
        self._taken += steps


def shrink(
    scenario: Scenario, choices: Choices, fails: Callable[[Scenario, Choices], bool]
) -> Choices:
    """A schedule that fails too, with fewer switches: turns left out, or put together."""
    changed = True
    while changed:
        changed = False
        for at in range(len(choices)):
            candidates = [choices[:at] + choices[at + 1 :]]
            if at + 2 < len(choices) and choices[at][0] == choices[at + 2][0]:
                one, two = choices[at][1], choices[at + 2][1]
                if isinstance(one, int) and isinstance(two, int):
                    joined = (choices[at][0], one + two)
                    candidates += [
                        [*choices[:at], joined, choices[at + 1], *choices[at + 3 :]],
                        [*choices[:at], choices[at + 1], joined, *choices[at + 3 :]],
                    ]
            found = next((c for c in candidates if fails(scenario, c)), None)
            if found is not None:
                choices, changed = found, True
                break
    return choices
