"""The systems side by side: their environment, and how one of them is told what to do.

Each is a file of bench/adapters, run as a process of its own: pyjobs and bare PL/pgSQL by the
interpreter that runs the bench, the peers in an environment that is made for them below build/.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.server import Bench

ADAPTERS = Path(__file__).parent / "adapters"
REQUIREMENTS = ADAPTERS / "requirements.txt"
ENVIRONMENT = Path("build/bench/peers")
#: How long one call of an adapter may take, in seconds.
PATIENCE = 900


@dataclass(frozen=True)
class System:
    """One way to run background jobs.

    settings: what is tried for throughput; the best counts. What the number is, the adapter says.
    waiting: the setting for latency.
    history: finished jobs can be looked up afterwards, and were kept in what is measured.
    lacks: what it does not do of what pyjobs does, as far as it bears on the comparison.
    """

    name: str
    adapter: str
    package: str | None
    settings: tuple[int, ...]
    waiting: int
    history: bool
    lacks: str


SYSTEMS = [
    System("pyjobs", "on_pyjobs", None, (8, -16, 100, -100, -200), 4, history=True, lacks="-"),
    System("bare", "on_bare", None, (10, 100), 10, history=False,
           lacks="owner check, expiry of leases, retries, history, any notion of a job's end"),
    System("pgmq", "on_pgmq", "pgmq", (10, 100), 10, history=True,
           lacks="a worker, owner check, status, retry limit (it carries messages); polls"),
    System("pgqueuer", "on_pgqueuer", "pgqueuer", (10, 100), 10, history=True,
           lacks="owner check at completion; it buffers completions; jobs of many batches"),
    System("awa", "on_awa", "awa-pg", (64, 256), 64, history=True,
           lacks="jobs of many batches with counts; it does fence completions by a lease"),
    System("procrastinate", "on_procrastinate", "procrastinate", (16, 64), 16, history=True,
           lacks="owner check at completion (state only); jobs of many batches"),
    System("absurd", "on_absurd", "absurd-sdk", (16, 64), 16, history=True,
           lacks="jobs of many batches (steps of one task); bulk enqueue; polls"),
    System("dbos", "on_dbos", "dbos", (32, 256), 32, history=True,
           lacks="jobs of many batches (steps of one workflow); leases; bulk enqueue; polls"),
]  # fmt: skip
BY_NAME = {system.name: system for system in SYSTEMS}


class AdapterError(RuntimeError):
    """An adapter failed; the message is what it said."""


def python(system: System) -> str:
    """The interpreter for a system; makes the peers' environment where it is needed."""
    if system.package is None:
        return sys.executable
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    program = ENVIRONMENT.absolute() / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = ENVIRONMENT / "made"
    if not stamp.is_file() or stamp.read_text(encoding="ascii") != wanted:
        print(f"Installing the peers into {ENVIRONMENT} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(program), "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted, encoding="ascii")
    return str(program)


def versions() -> dict[str, str]:
    """The peers' versions, by pip's name, as they are pinned."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if "==" in line]
    return {name.partition("[")[0]: version.strip() for name, version in pinned}


def start(bench: Bench, system: System, action: str, url: str, **options: Any) -> Call:
    """Begin an action of an adapter: install, enqueue, produce, work or left."""
    command = [python(system), str(ADAPTERS / f"{system.adapter}.py"), action, url]
    return Call([*command, json.dumps(options)], bench.server.bin_dir)


def call(bench: Bench, system: System, action: str, url: str, **options: Any) -> dict[str, Any]:
    """Do it, and return what it measured."""
    with start(bench, system, action, url, **options) as running:
        return running.result()


class Call:
    """A process of an adapter; ended when the context is left."""

    def __init__(self, command: list[str], programs: Path) -> None:
        # One of them calls psql.
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._name = f"{Path(command[1]).stem} {command[2]}"
        # A file, which never fills up as a pipe does that nobody reads.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    def ready(self) -> None:
        """Wait until the worker has handled its first job."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        self.process.wait()
        raise self._failed()

    def result(self) -> dict[str, Any]:
        """Wait for the end. Raises AdapterError where it failed or took too long."""
        try:
            output, _ = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AdapterError(f"{self._name}: not done after {PATIENCE} s") from None
        if self.process.returncode != 0:
            raise self._failed()
        done: dict[str, Any] = json.loads(output.splitlines()[-1])
        return done

    def _failed(self) -> AdapterError:
        self._errors.seek(0)
        return AdapterError(f"{self._name}: {self._errors.read()[-2000:].strip()}")


@contextmanager
def installed(bench: Bench, system: System) -> Iterator[str]:
    """A database with the system's schema in it, as a URL by TCP, which all drivers know."""
    with bench.database(tcp=True) as url:
        call(bench, system, "install", url)
        yield url


def side(system: System, setting: int) -> str:
    """What a measurement of this setting is called."""
    return f"{system.name} {setting}"
