"""Broken copies of the functions, and of a worker, on which a storm must turn red."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.mutants import catalogue
from tests.storm import actors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.storm.actors import Result
    from tests.support.calls import Calls

# The mutants of functions. Their own checks choose who goes on; here they have to meet by chance.
OF_THE_FUNCTIONS = {
    mutant.name.partition("-")[2]: mutant
    for mutant in catalogue.every()
    if all(file.startswith("sql/") for file in mutant.files)
}


class HastyWorker(actors.Worker):
    """Tells the ledger that it is committed before it is."""

    def _commit(self, calls: Calls, results: Sequence[Result]) -> None:
        for result in results:
            result.acked(self.ledger)
        self._unsure.clear()  # so it would not post them again
        self.pause(0.05)
        calls.do("commit")


class TwoStepWorker(actors.Worker):
    """Commits the application's rows in a transaction of their own, before the record's."""

    def _insert(self, calls: Calls, result: Result) -> None:
        super()._insert(calls, result)
        calls.do("commit")
        self.pause(0.02)
        calls.do("begin")


OF_A_CLIENT = {
    "acknowledged-before-the-commit": ("worker", HastyWorker),
    "rows-in-a-transaction-of-their-own": ("worker", TwoStepWorker),
}
actors.ROLES.update({name: role for name, (_, role) in OF_A_CLIENT.items()})

NAMES = (*OF_THE_FUNCTIONS, *OF_A_CLIENT)


def options(name: str) -> dict[str, Any]:
    """What to change in a storm's options."""
    if name in OF_A_CLIENT:
        return {"roles": {OF_A_CLIENT[name][0]: name}}
    mutant = OF_THE_FUNCTIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = mutant.apply(Path(folder) / "copy")
        return {"broken": {file: (copy / file).read_text("utf-8") for file in mutant.files}}
