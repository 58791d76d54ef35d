"""A schedule as a line that replays it, and as a table that a person can read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.explorer.run import Outcome, Step
    from tests.explorer.search import Choices

_WIDTH = 100


def to_line(scenario: str, choices: Choices) -> str:
    """``scenario:a5.b12.c!``: a goes five steps, b twelve, the wait of c is over by its bound."""
    return f"{scenario}:" + ".".join(f"{chr(97 + s)}{n}" for s, n in choices)


def from_line(line: str) -> tuple[str, Choices | int]:
    """The scenario, and the choices or a seed."""
    name, _, rest = line.partition(":")
    if rest.startswith("seed="):
        return name, int(rest.removeprefix("seed="))
    choices: Choices = []
    for turn in filter(None, rest.split(".")):
        if not re.fullmatch(r"[a-z](\d+|!)", turn):
            raise ValueError(f"not a turn: {turn}")
        choices.append((ord(turn[0]) - 97, "!" if turn[1:] == "!" else int(turn[1:])))
    return name, choices


def table(outcome: Outcome) -> str:
    """Sessions side by side, one line a step."""
    sessions = len(outcome.scenario.sessions)
    shown = [n for n in range(sessions) if outcome.scenario.sessions[n]]
    width = max(24, (_WIDTH - 6) // len(shown) - 2)
    lines = ["set-up: " + "; ".join(outcome.scenario.setup), ""]
    lines.append(
        "step  " + "  ".join(f"session {chr(97 + n)}".ljust(width) for n in shown).rstrip()
    )
    calls = {id(c): c for c in outcome.calls}
    for number, step in enumerate(outcome.steps):
        cells = _what(outcome, step)
        cells += [
            f"= {_answer(call.answer)}"
            for call in calls.values()
            if call.step == number and call.answer is not None
        ]
        for first, cell in enumerate(cells):
            at = shown.index(step.session)
            # The last column may run on, the others are cut.
            text = cell if at == len(shown) - 1 else cell[:width]
            lead = f"{number:4}  " if first == 0 else " " * 6
            lines.append((lead + " " * (at * (width + 2)) + text).rstrip())
    return "\n".join(lines)


def _what(outcome: Outcome, step: Step) -> list[str]:
    if step.kind == "timeout":
        return ["! the bound of its wait is over"]
    if step.kind == "deadlock":
        return ["! refused: deadlock"]
    if step.kind == "resume":
        return ["> goes on"]
    if step.place is None:
        text = f"[{outcome.scenario.sessions[step.session][step.op]}]"
    else:
        text = f"{step.place}  {step.place.text}"
    return [text, "< waits for a lock"] if step.waits else [text]


def _answer(answer: object) -> str:
    rows = getattr(answer, "rows", [])
    sqlstate = getattr(answer, "sqlstate", None)
    if sqlstate:
        return f"{sqlstate} {getattr(answer, 'message', '')}"
    if not rows:
        return "no rows"
    return "; ".join(
        ", ".join(f"{k} {v}" for k, v in row.items() if v is not None and k not in _DULL)
        for row in rows
    )


_DULL = {"params", "items", "lease_expires_at", "queue", "run", "attempt"}
