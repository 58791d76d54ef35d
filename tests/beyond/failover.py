"""How long is there no service when a standby takes over? Beside clients that know nothing of jobs.

    python -m tests.beyond.failover [--repeats 5] [--hang SECONDS] [--json]

On one pair of servers, with commits that wait for both and reach the disk, at once: plain clients
that update one row of their own and connect again (by psycopg, and pgbench, which does not connect
again and is started anew), workers in SQL, and both Python workers. The primary is killed with
SIGKILL and the standby promoted at once, so that the time that a cluster manager takes to notice is
not in it. With --hang the primary first hangs that long, and is then killed.

A gap is the longest time between two acknowledged commits of a kind of client; in brackets that of
the one client of the kind for whom it was longest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.beyond.support.load import TABLES, Load
from tests.beyond.support.pair import Pair, freeze
from tests.support import wait_until
from tests.support.calls import Calls

DURABLE = {"shared_buffers": "128MB", "max_wal_size": "1GB", "max_connections": "100"}
# kind: the process that is started, and how many of it
CLIENTS = {
    "bare": ("bare", 2),
    "SQL worker": ("raw", 2),
    "Worker": ("sync", 2),
    "AsyncWorker": ("async", 2),
}
KINDS = ["bare", "pgbench", *list(CLIENTS)[1:]]
# Longest first, in seconds: of the kind as a whole, and of its slowest client.
Gaps = dict[str, tuple[float, float]]


class Pgbench:
    """Two pgbench processes, each started anew whenever it has ended."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self._dsn = pair.dsn
        self._folder = folder
        self._program = pair.first.bin_dir / "pgbench"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[n]) for n in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        script = self._folder / f"bench{number}.sql"
        script.write_text(f"update public.bare set n = n + 1 where id = {60 + number} and n >= 0;")
        command = [self._program, "-n", "-c", "1", "-T", "600", "-l", "-f", script]
        while not self._stop.is_set():
            prefix = self._folder / f"bench{number}"
            process = subprocess.Popen(
                [*command, f"--log-prefix={prefix}", self._dsn],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while process.poll() is None:
                if self._stop.wait(0.01):
                    # Its log is written when it ends by itself, which a lost session makes it do.
                    return
        process.wait()

    def stop(self) -> None:
        """Let them end when they next lose their sessions: with the server."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def acknowledged(self) -> dict[str, list[float]]:
        """For each, when its transactions ended, on the monotonic clock."""
        offset = time.time() - time.monotonic()
        found: dict[str, list[float]] = {}
        for log in self._folder.glob("bench*.[0-9]*"):
            times = found.setdefault(log.name.split(".")[0], [])
            for line in log.read_text().splitlines():
                fields = line.split()
                if len(fields) >= 6:
                    times.append(int(fields[4]) + int(fields[5]) / 1e6 - offset)
        return {name: sorted(times) for name, times in found.items()}


def longest(times: list[float], since: float) -> float:
    """The longest gap that ends after that moment."""
    pairs = itertools.pairwise(times)
    return max((b - a for a, b in pairs if b >= since), default=float("nan"))


def one_failover(hang: float) -> tuple[Gaps, float]:
    """The gaps of each kind, and how long the promotion took, all in seconds."""
    with tempfile.TemporaryDirectory(prefix="failover-") as folder:
        return _one_failover(hang, Path(folder))


def _one_failover(hang: float, folder: Path) -> tuple[Gaps, float]:
    with Pair(DURABLE) as pair:
        load = Load(pair.dsn, folder)
        with psycopg.connect(pair.dsn, autocommit=True) as conn:
            conn.execute(TABLES.encode())
            for _ in range(4):
                Calls(conn).enqueue(items=20_000, stages=["only"])
        bench = Pgbench(pair, folder)
        try:
            names: dict[str, list[str]] = {}
            for kind, (process, count) in CLIENTS.items():
                names[kind] = [f"{kind} {n}" for n in range(count)]
                for n, name in enumerate(names[kind]):
                    load.start(process, name, **({"row": n + 1} if process == "bare" else {}))
            everybody = {name for group in names.values() for name in group}

            def all_go_on(since: float) -> None:
                wait_until(
                    lambda: (
                        everybody <= {e["who"] for e in load.ledger.read() if e["at"] > since}
                        or load.dead()
                    ),
                    "everybody goes on",
                    120,
                )
                assert load.dead() == []

            all_go_on(0)
            time.sleep(2)
            if hang:
                freeze(pair.primary)
                time.sleep(hang)
            killed = time.monotonic()
            pair.primary.kill()
            pair.promote()
            promoted = time.monotonic()
            all_go_on(promoted)
            time.sleep(2)
            load.end()
            bench_stopped = threading.Thread(target=bench.stop)
            bench_stopped.start()
            pair.primary.kill()
            bench_stopped.join()
            time.sleep(0.5)  # pgbench writes its log
        finally:
            bench.stop()
            load.close()
    of_client: dict[str, list[float]] = {}
    for entry in load.ledger.read():
        if entry["what"] in ("recorded", "bare"):
            of_client.setdefault(entry["who"], []).append(entry["at"])
    groups = {kind: [sorted(of_client[name]) for name in group] for kind, group in names.items()}
    groups["pgbench"] = list(bench.acknowledged().values())
    gaps = {
        kind: (
            longest(sorted(t for times in group for t in times), killed),
            max(longest(times, killed) for times in group),
        )
        for kind, group in groups.items()
    }
    return gaps, promoted - killed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hang", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="the figures, for programs")
    arguments = parser.parse_args()
    found: list[tuple[Gaps, float]] = []
    show = not arguments.json
    if show:
        print(f"{'seconds':<10}{'promotion':>12}" + "".join(f"{k:>18}" for k in KINDS))
    for number in range(arguments.repeats):
        gaps, promotion = one_failover(arguments.hang)
        found.append((gaps, promotion))
        if show:
            print(f"{number + 1:<10}{promotion:>12.2f}" + _row(gaps), flush=True)
    medians: Gaps = {
        kind: (
            statistics.median(gaps[kind][0] for gaps, _ in found),
            statistics.median(gaps[kind][1] for gaps, _ in found),
        )
        for kind in KINDS
    }
    promotion = statistics.median(promotion for _, promotion in found)
    if show:
        print(f"{'median':<10}{promotion:>12.2f}" + _row(medians))
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    else:
        print(json.dumps({"promotion": promotion, "median": medians, "load": os.getloadavg()[0]}))
    return 0


def _row(gaps: Gaps) -> str:
    cells: list[Any] = [f"{gaps[kind][0]:.2f} ({gaps[kind][1]:.2f})" for kind in KINDS]
    return "".join(f"{cell:>18}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
