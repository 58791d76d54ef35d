"""What throughput does as something grows. One file is one curve, beside the server's limit.

They are workloads (bench.workload) whose sides are named `LINE X`, as "pyjobs 16": the report draws
each line over x. AXIS says what x is, BENDS why a curve bends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bench.server import Bench
    from bench.workload import Measured

#: The order in which they run and are reported.
ORDER = ["sessions", "batches", "jobs", "kept", "items", "payload"]

PYJOBS, LIMIT = "pyjobs", "the server's limit"


def sides(
    xs: Iterable[int], lines: Mapping[str, Callable[[Bench, int], Measured]]
) -> dict[str, Callable[[Bench], Measured]]:
    """Each line measured at each x, the lines in turn."""

    def side(measure: Callable[[Bench, int], Measured], x: int) -> Callable[[Bench], Measured]:
        return lambda bench: measure(bench, x)

    return {f"{line} {x}": side(measure, x) for x in xs for line, measure in lines.items()}
