"""docs/mutants.md, from the heads of the patches."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.mutants.catalogue import ROOT

if TYPE_CHECKING:
    from tests.mutants.catalogue import Mutant

PAGE = ROOT / "docs" / "mutants.md"

_TOP = """\
# Mutants

Each line is a small break of the functions that ship, kept as a patch in `tests/mutants/`, and the
check that notices it. `make mutants` applies each patch to a copy of `sql/`, deploys that to a
database of its own, demands that the check fails there by a broken rule (an error in the mutant's
SQL does not count), and that it passes on what ships. A patch that no longer applies is a failure.

This page is written by `python -m tests.mutants --table`.

{number} mutants. "everyday" says whether the tests that are run every day notice it
(`python -m tests.mutants --all-tests`; the files are listed in `tests/mutants/kill.py`).
{only} of them {survive} those tests and {die} by the explorer: that is what it is needed for.
"""


def page(mutants: list[Mutant]) -> str:
    """The whole page."""
    only = [m for m in mutants if m.unit_tests == "survives"]
    top = _TOP.format(
        number=len(mutants),
        only=len(only),
        survive="survives" if len(only) == 1 else "survive",
        die="dies" if len(only) == 1 else "die",
    )
    lines = [top, *(f"- `{m.name}`" for m in only), ""] if only else [top]
    lines += [
        "| mutant | what is broken | why it matters | killed by | everyday |",
        "|" + "---|" * 5,
    ]
    for m in mutants:
        killer = m.killer
        by = (
            f"`{re.sub(r'^tests/', '', killer.test)}`"
            if killer.test
            else f"explorer: `{killer.scenario}`"
        )
        cells = [f"`{m.name}`", m.what, m.matters, by, m.unit_tests]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n\n" + (ROOT / "tests/mutants/equivalent.md").read_text("utf-8")
