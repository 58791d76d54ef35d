"""Who does what: every pair of calls, the scenes that matter most, and scenes made at random."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from typing import TYPE_CHECKING

from tests.explorer.acts import (
    ACTIONS,
    BACK,
    COMMIT,
    RECORD_GOT,
    ROLLBACK,
    SAVEPOINT,
    SETUPS,
    Ops,
    two_jobs,
    tx,
)
from tests.explorer.run import Op, Scenario
from tests.explorer.scenes import named

if TYPE_CHECKING:
    from collections.abc import Iterator


def pairs() -> Iterator[Scenario]:
    """Every pair of what changes something, on one job, in each scene that suits both."""
    for first, second in itertools.combinations_with_replacement(ACTIONS, 2):
        one, scenes = ACTIONS[first]
        two, others = ACTIONS[second]
        shared = [s for s in scenes if s in others] or [min(scenes, others, key=len)[0]]
        for scene in shared:
            yield Scenario(
                f"pair-{first}-{second}-{scene}", SETUPS[scene], (tx(*one(1)), tx(*two(2)))
            )


def scrambled(seed: int) -> Scenario:
    """A scene made at random: two to four sessions, each of one or two transactions."""
    dice = random.Random(f"scene {seed}")
    setup = dice.choice(list(SETUPS))
    suited = [a for a, (_, scenes) in ACTIONS.items() if setup in scenes]
    several = dice.random() < 0.1
    if several:
        suited = ["record", "fail", "fused", "batches", "extend", "release", "cancel", "cancelnow",
                  "quarantine", "pause", "force", "claimmany", "claimhere", "reap"]  # fmt: skip
    sessions = []
    for _ in range(dice.choice((2, 2, 3, 3, 3, 4))):
        ops: Ops = ()
        for _ in range(dice.choice((1, 1, 2))):
            chosen = [
                dice.choice(
                    _WORK
                    if (kind := dice.random()) < 0.4
                    else suited
                    if kind < 0.85
                    else list(ACTIONS)
                )
                for _ in range(dice.choice((1, 1, 1, 2)))
            ]
            body: Ops = ()
            for name in chosen:
                own = ACTIONS[name][0](dice.choice((1, 2)))
                if several and dice.random() < 0.5:
                    own = tuple(_of_job_2(op) for op in own)
                body += (SAVEPOINT, *own, BACK) if dice.random() < 0.1 else own
                if name.startswith("claim") and dice.random() < 0.5:
                    body += (RECORD_GOT,)
            ops += tx(*body, end=ROLLBACK if dice.random() < 0.2 else COMMIT)
        sessions.append(ops)
    return Scenario(
        f"scene-{seed}",
        _TWO_JOBS if several else SETUPS[setup],
        tuple(sessions),
        2 if several else 1,
        linger=dice.random() < 0.3,
    )


# Leases that come and go, and results that come late.
_WORK = ["record", "record", "claim", "claim", "claimhere", "fused", "release", "giveup", "reap"]
# Batch 1 is of job 1, batch 2 of job 2.
_TWO_JOBS = two_jobs(1)


def _of_job_2(op: Op) -> Op:
    text = re.sub(
        r"\b((?:\w+_job|add_items|claim_next_batch|set_priority)\()1\b", r"\g<1>2", op.text
    )
    return dataclasses.replace(op, text=text)


def find(name: str) -> Scenario:
    """A scenario by its name; ``name+linger`` lets advisory locks end after the commit."""
    plain, _, linger = name.partition("+")
    if plain.startswith("scene-"):
        return scrambled(int(plain.removeprefix("scene-")))
    for scenario in (*named(), *pairs()):
        if scenario.name == plain:
            return lingering(scenario) if linger else scenario
    raise KeyError(name)


def every() -> list[Scenario]:
    """All that are gone through systematically."""
    first = list(named())
    again = [lingering(s) for s in first if s.name.startswith(_LINGER)]
    return [*first, *again, *pairs()]


_LINGER = ("flow", "barrier", "last-t", "offer", "seal", "cancel")


def lingering(scenario: Scenario) -> Scenario:
    """The same with advisory locks that end a moment after their transaction."""
    return Scenario(
        f"{scenario.name}+linger",
        scenario.setup,
        scenario.sessions,
        scenario.jobs,
        linger=True,
    )
