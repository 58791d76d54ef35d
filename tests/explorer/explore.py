"""Goes through the scenarios and keeps the tally."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from typing import TYPE_CHECKING

from tests.explorer import scenarios, search
from tests.explorer.check import Checker
from tests.explorer.report import table, to_line
from tests.explorer.run import Plan, Runner
from tests.explorer.sessions import Database

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from tests.explorer.run import Outcome, Scenario
    from tests.explorer.search import Choices

# So many steps a random schedule is taken to have, when its points of change are drawn.
_LENGTH = 60
_BEAT = 60.0  # seconds


@dataclasses.dataclass
class Failure:
    """A schedule that broke a rule, as small as it could be made."""

    line: str
    problems: list[str]
    table: str
    after: int  # schedules of this scenario until it was found

    def __str__(self) -> str:
        return "\n".join(
            [
                *(f"  {p}" for p in self.problems),
                f"  replay: python -m tests.explorer replay '{self.line}'",
                self.table,
            ]
        )


@dataclasses.dataclass
class Total:
    """What a run has done."""

    schedules: int = 0
    random: int = 0
    pruned: int = 0
    diverged: int = 0
    scenarios: int = 0
    exhausted: int = 0  # scenarios with nothing left up to the bound
    final_states: int = 0
    failures: list[Failure] = dataclasses.field(default_factory=list)
    seconds: float = 0

    def __str__(self) -> str:
        rate = self.schedules / self.seconds if self.seconds else 0
        return (
            f"{self.schedules} schedules ({self.random} random) of {self.scenarios} scenarios, "
            f"{self.exhausted} of them complete up to the bound; {self.pruned} left out as "
            f"equivalent, {self.final_states} different ends, {self.diverged} did not repeat; "
            f"{self.seconds:.0f} s, {rate:.0f}/s; {len(self.failures)} failures"
        )


class Explorer:
    """Explores on one database."""

    def __init__(self, database: Database, tell: Callable[[str], None] | None = None) -> None:
        self._runner = Runner(database)
        self._checker = Checker(self._runner)
        self._tell = tell
        self._told = time.monotonic()
        self.total = Total()

    def _beat(self) -> None:
        """A sign of life now and then."""
        if self._tell and time.monotonic() - self._told > _BEAT:
            self._told = time.monotonic()
            self._tell(f"so far {self.total}")

    def close(self) -> None:
        self._runner.close()

    def systematically(
        self,
        chosen: Iterable[Scenario],
        bound: int,
        *,
        limit: int | None = None,
        until: float = float("inf"),
        stop_at_first: bool = True,
    ) -> Iterator[Failure]:
        """Every schedule with up to ``bound`` preemptions of each scenario; what fails."""
        for scenario in chosen:
            if time.monotonic() > until:
                return
            began = time.monotonic()
            tally = search.Tally()
            found: set[str] = set()
            for outcome in search.bounded(scenario, self._runner.run, bound, tally, limit=limit):
                problems = self._checker.check(outcome)
                if problems and not found:
                    found.update(problems)
                    yield self._failure(outcome, problems, tally.schedules)
                    if stop_at_first:
                        break
                if time.monotonic() > until:
                    break
            else:
                self.total.exhausted += limit is None or tally.schedules < limit
            self.total.scenarios += 1
            self.total.schedules += tally.schedules
            self.total.pruned += tally.pruned
            self.total.diverged += tally.diverged
            self.total.final_states = self._checker.final_states
            self.total.seconds += time.monotonic() - began
            self._beat()

    def at_random(
        self, seeds: Iterable[int], until: float, chosen: list[Scenario] | None = None
    ) -> Iterator[Failure]:
        """Random schedules of random scenes (and of ``chosen``), one a seed; what fails."""
        for seed in seeds:
            if time.monotonic() > until:
                return
            began = time.monotonic()
            dice = random.Random(seed)
            if chosen and dice.random() < 0.5:
                scenario = dice.choice(chosen)
                if dice.random() < 0.3:
                    scenario = scenarios.lingering(scenario)
            else:
                scenario = scenarios.scrambled(seed)
            outcome = self.play_seed(scenario, seed)
            problems = self._checker.check(outcome)
            self.total.schedules += 1
            self.total.random += 1
            self.total.final_states = self._checker.final_states
            if problems:
                yield self._failure(outcome, problems, self.total.random)
            self.total.seconds += time.monotonic() - began
            self._beat()

    def play(self, scenario: Scenario, choices: Choices) -> tuple[Outcome, list[str]]:
        """One schedule, and what is wrong with it."""
        outcome = self._runner.run(scenario, Plan(choices))
        return outcome, Checker(self._runner).check(outcome)

    def play_seed(self, scenario: Scenario, seed: int) -> Outcome:
        """One random schedule."""
        return self._runner.run(scenario, search.Dice(seed, len(scenario.sessions), _LENGTH))

    def _failure(self, outcome: Outcome, problems: list[str], after: int) -> Failure:
        scenario = outcome.scenario

        def fails(smaller: Scenario, choices: Choices) -> bool:
            return bool(self.play(smaller, choices)[1])

        choices = outcome.choices
        if fails(scenario, choices):
            # Sessions are kept, so that the line replays.
            choices = search.shrink(scenario, choices, fails)
            outcome, problems = self.play(scenario, choices)
        failure = Failure(
            to_line(scenario.name, choices), sorted(set(problems)), table(outcome), after
        )
        self.total.failures.append(failure)
        return failure


def spread(items: list[Scenario], part: int, parts: int) -> list[Scenario]:
    """One of several equal shares."""
    return items[part::parts]


def say(tell: Callable[[str], None], failures: Iterable[Failure]) -> int:
    """Tell each failure; how many there were."""
    count = 0
    for failure in failures:
        count += 1
        tell(f"FAILED {failure.line} (found after {failure.after} schedules)\n{failure}\n")
    return count


def work(url: str, number: int, given: argparse.Namespace) -> Total:
    """What one of several processes does, on a database of its own."""

    def tell(text: str) -> None:
        print(text, flush=True)

    explorer = Explorer(Database(url, f"explorer_{number}"), tell)
    until = time.monotonic() + given.seconds
    wanted = given.schedules and -(-given.schedules // given.workers)
    chosen = [s for s in scenarios.every() if given.only in s.name]
    mine = spread(chosen, number, given.workers)
    if wanted:
        # Each scenario has its turn, and a third is random.
        given.limit = max(1, wanted * 2 // 3 // len(mine))
        given.bound = 1
    # First all with few preemptions, everywhere; then those with one more, for half of what is
    # left; then random ones.
    for bound in range(1, 0 if given.random else given.bound + 1):
        share = 1 if bound == 1 else 2
        end = time.monotonic() + (until - time.monotonic()) / share
        say(tell, explorer.systematically(mine, bound, limit=given.limit, until=end))
    if not given.only:
        seeds: Iterable[int] = itertools.count(given.seed + number, given.workers)
        if wanted:
            seeds = itertools.islice(seeds, max(0, wanted - explorer.total.schedules))
        say(tell, explorer.at_random(seeds, until, list(scenarios.named())))
    explorer.close()
    return explorer.total
