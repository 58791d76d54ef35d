"""Load from pgbench: scripts of SQL by many sessions, measured by its log of transactions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class LoadError(RuntimeError):
    """pgbench failed, or a session of it did."""


@dataclass(frozen=True)
class Load:
    """What a run did.

    transactions: how many, over all sessions.
    rate: a second, without the time to connect.
    p50, p99: of one transaction, in milliseconds.
    ends: when each ended, in seconds from the first that ended, ascending.
    """

    transactions: int
    rate: float
    p50: float
    p99: float
    ends: list[float]

    def tenths(self) -> list[float]:
        """The rate in each tenth of the transactions, in order."""
        size = len(self.ends) // 10
        if size < 2:
            raise LoadError(f"{len(self.ends)} transactions are too few for ten parts")
        bounds = [self.ends[min(n * size, len(self.ends) - 1)] for n in range(11)]
        return [size / max(b - a, 1e-9) for a, b in pairwise(bounds)]

    def level(self) -> float:
        """The rate of the last tenth of the transactions over that of the first."""
        tenths = self.tenths()
        return tenths[-1] / tenths[0]

    def over_time(self, parts: int = 20) -> list[tuple[float, float]]:
        """(seconds, rate): the run cut in parts of the same length."""
        length = (self.ends[-1] if self.ends else 0.0) / parts
        if length <= 0:
            return []
        counts = [0] * parts
        for end in self.ends:
            counts[min(int(end / length), parts - 1)] += 1
        return [((n + 0.5) * length, count / length) for n, count in enumerate(counts)]


def run(
    program: Path,
    url: str,
    script: str,
    *,
    sessions: int,
    transactions: int | None = None,
    seconds: float | None = None,
    variables: Mapping[str, int] | None = None,
) -> Load:
    """Run a script until each session has done its transactions, or the seconds are over.

    transactions: of each session. Raises LoadError where a session failed.
    """
    with Background(
        program,
        url,
        script,
        sessions=sessions,
        transactions=transactions,
        seconds=seconds,
        variables=variables,
    ) as load:
        return load.finish()


class Background:
    """A load that runs beside something else; `finish` waits for its end and measures it."""

    def __init__(
        self,
        program: Path,
        url: str,
        script: str,
        *,
        sessions: int,
        transactions: int | None = None,
        seconds: float | None = None,
        variables: Mapping[str, int] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pyjobs-bench-")
        folder = Path(self._folder.name)
        file = folder / "script.sql"
        file.write_text(script, encoding="utf-8")
        command = [str(program), "--no-vacuum", "--protocol=prepared", f"--file={file}"]
        command += [f"--client={sessions}", f"--jobs={min(sessions, 2)}"]
        command += ["--log", f"--log-prefix={folder / 'log'}"]
        if transactions is not None:
            command.append(f"--transactions={transactions}")
        if seconds is not None:
            command.append(f"--time={max(1, round(seconds))}")
        command += [f"--define={name}={value}" for name, value in (variables or {}).items()]
        self._output = (folder / "output").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [*command, url], stdout=self._output, stderr=self._output, stdin=subprocess.DEVNULL
        )

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._output.close()
        self._folder.cleanup()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> Load:
        """Wait for the end. Raises LoadError where a session failed."""
        status = self._process.wait()
        self._output.seek(0)
        output = self._output.read()
        if status != 0 or "aborted" in output:
            told = [line for line in output.splitlines() if "rror" in line][:3]
            raise LoadError("\n".join([f"pgbench ended with status {status}", *told]))
        return parse(output, [f.read_text() for f in Path(self._folder.name).glob("log.*")])


def parse(output: str, logs: list[str]) -> Load:
    """Read pgbench's summary, and its log: one line a transaction."""
    said = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    if said is None:
        raise LoadError(f"pgbench said no rate:\n{output[-2000:]}")
    latencies: list[int] = []
    ends: list[float] = []
    for log in logs:
        for line in log.splitlines():
            _, _, latency, _, seconds, micros = line.split()[:6]
            latencies.append(int(latency))
            ends.append(int(seconds) + int(micros) / 1e6)
    if not ends:
        raise LoadError("pgbench did no transaction")
    latencies.sort()
    ends.sort()
    first = ends[0]
    return Load(
        transactions=len(ends),
        rate=float(said[1]),
        p50=percentile(latencies, 0.50) / 1000,
        p99=percentile(latencies, 0.99) / 1000,
        ends=[end - first for end in ends],
    )


def percentile(ascending: list[int] | list[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
