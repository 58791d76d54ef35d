"""What is done to the workers and the jobs while they run.

Each act is a function in a thread of its own. None of them sleeps for luck: an act waits until a
worker says where it is, holds it still there, asks the database whether that lease is really out,
and only then strikes. What it did is kept for the account.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from pyjobs.demo.processes import DemoError, Told

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyjobs.demo.processes import Ears, WorkerProcess


@dataclass(frozen=True)
class Lease:
    """A lease as it was out when an act struck, with the rows written under it, not committed."""

    worker: str
    batch_id: int
    lease_epoch: int
    rows: int


@dataclass
class Record:
    """What was done, as far as it was done."""

    killed: Lease | None = None
    suspended: Lease | None = None
    cancelled_at: int | None = None  # items of the red plate that were done by then
    failed_items: int | None = None  # of the blue plate, in its first run
    trouble: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """What was not done: a demo in which nothing went wrong has shown nothing."""
        done = {
            "No worker was killed.": self.killed,
            "No worker was suspended.": self.suspended,
            "No job was cancelled.": self.cancelled_at,
            "No job was retried.": self.failed_items,
        }
        return [sentence for sentence, what in done.items() if what is None]


@dataclass
class Scene:
    """All that an act needs."""

    database_url: str
    deadline: float  # by time.monotonic()
    ears: Ears
    note: Callable[[str, str], None]  # text, style
    survey: int
    red: int
    blue: int
    record: Record = field(default_factory=Record)
    stopping: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.database_url, autocommit=True, application_name="pyjobs demo")

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        """Ask again until it is so. Raises at the deadline, or when the demo is being stopped."""
        while not condition():
            if time.monotonic() > self.deadline:
                raise DemoError(f"waited in vain until {what}")
            if self.stopping.wait(0.05):
                raise DemoError(f"stopped while waiting until {what}")


class Act(threading.Thread):
    """A thread that keeps its trouble for the account."""

    def __init__(self, scene: Scene, act: Callable[..., None], *args: object) -> None:
        super().__init__(name=act.__name__, daemon=True)
        self._scene = scene
        self._act = act
        self._args = args
        self.start()

    def run(self) -> None:
        try:
            self._act(self._scene, *self._args)
        except (DemoError, psycopg.Error, OSError) as error:
            self._scene.record.trouble.append(f"{self.name.replace('_', ' ')}: {error}")


def _value(connection: psycopg.Connection[Any], query: str, *args: object) -> Any:
    row = connection.execute(query.encode(), args).fetchone()
    return None if row is None else row[0]


def _progressed(connection: psycopg.Connection[Any], job_id: int, stage: str) -> tuple[int, int]:
    """Items done and items in all of a job's stage, as its progress document says."""
    document = _value(connection, "select pyjobs.job_progress(%s)", job_id)
    found = next(s for s in document["stages"] if s["key"] == stage)
    return found["processed"], found["total"]


def _wait_for_share(
    scene: Scene, connection: psycopg.Connection[Any], job_id: int, share: float
) -> int:
    """Wait until that share of the tiles is done; returns how many are."""
    done = 0

    def is_there() -> bool:
        nonlocal done
        done, total = _progressed(connection, job_id, "process")
        return total > 0 and done >= share * total

    scene.wait_until(f"{share:.0%} of job {job_id} are done", is_there)
    return done


def _catch(scene: Scene, connection: psycopg.Connection[Any], victim: WorkerProcess) -> Lease:
    """Hold the victim still between writing a batch's rows and recording it, its lease out."""
    position = scene.ears.now()

    def has_written(told: Told) -> bool:
        return told.worker == victim.name and told.what == "wrote" and told.job_id == scene.survey

    while True:
        told = scene.ears.wait_for(has_written, position, scene.deadline)
        # Stopped first and looked at afterwards: what is true now stays true until it goes on.
        if not victim.suspend():
            raise DemoError(f"{victim.name} ended by itself")
        # Twice, for what it may have sent in its last moment and the server has not yet read.
        if _is_before_record(connection, victim, told):
            time.sleep(0.05)
            if _is_before_record(connection, victim, told):
                return Lease(victim.name, told.batch_id, told.lease_epoch, told.rows)
        # Too late, it was recording already: the next one.
        victim.resume()
        position = scene.ears.now()


def _is_before_record(
    connection: psycopg.Connection[Any], victim: WorkerProcess, told: Told
) -> bool:
    """Its lease is out, its rows are written, and it has asked for nothing since."""
    row = connection.execute(
        "select from pyjobs.batch, pg_stat_activity"
        " where id = %s and lease_epoch = %s and batch.state = 'leased' and worker = %s"
        " and pid = %s and pg_stat_activity.state = 'idle in transaction'"
        " and query like 'copy survey.source%%'",
        (told.batch_id, told.lease_epoch, victim.name, told.backend),
    ).fetchone()
    return row is not None


def _wait_until_recorded_by_another(
    scene: Scene, connection: psycopg.Connection[Any], lease: Lease
) -> str:
    other = ""

    def is_recorded() -> bool:
        nonlocal other
        row = connection.execute(
            "select worker from pyjobs.batch"
            " where id = %s and lease_epoch > %s and state = 'recorded'",
            (lease.batch_id, lease.lease_epoch),
        ).fetchone()
        other = "" if row is None else row[0]
        return row is not None

    scene.wait_until(f"another worker has recorded batch {lease.batch_id}", is_recorded)
    return other


def kill_one_worker(scene: Scene, victim: WorkerProcess, replace: Callable[[], str]) -> None:
    """Kill -9 of a worker that has written a batch's rows and not yet committed them."""
    with scene.connect() as connection:
        _wait_for_share(scene, connection, scene.survey, 0.15)
        lease = _catch(scene, connection, victim)
        victim.kill()
        scene.record.killed = lease
        scene.note(
            f"kill -9 of {victim.name}: batch {lease.batch_id}, {lease.rows} rows not committed",
            "bold red",
        )
        scene.note(f"{replace()} takes its place; the lease must run out first", "")
        other = _wait_until_recorded_by_another(scene, connection, lease)
        scene.note(f"batch {lease.batch_id} of the killed worker is recorded by {other}", "green")


def suspend_one_worker(scene: Scene, victim: WorkerProcess) -> None:
    """Suspend a worker until another has done its batch, then let it deliver its late result."""
    with scene.connect() as connection:
        _wait_for_share(scene, connection, scene.survey, 0.3)
        lease = _catch(scene, connection, victim)
        victim.mark_suspended()
        scene.record.suspended = lease
        scene.note(
            f"{victim.name} is suspended: batch {lease.batch_id}, {lease.rows} rows not committed",
            "bold yellow",
        )
        try:
            other = _wait_until_recorded_by_another(scene, connection, lease)
        finally:
            victim.resume()
        scene.note(f"{other} recorded batch {lease.batch_id}; {victim.name} goes on, late", "")
        scene.wait_until(
            f"the late result of batch {lease.batch_id} is refused",
            lambda: bool(
                _value(
                    connection,
                    "select count(*) from pyjobs.refused where batch_id = %s and lease_epoch = %s",
                    lease.batch_id,
                    lease.lease_epoch,
                )
            ),
        )
        scene.note(f"the late result of {victim.name} is refused with its rows", "green")


def cancel_one_job(scene: Scene) -> None:
    """Cancel the survey of the red plate when half of its tiles are done."""
    with scene.connect() as connection:
        done = _wait_for_share(scene, connection, scene.red, 0.5)
        status = _value(
            connection,
            "select pyjobs.cancel_job(%s, reason => %s)",
            scene.red,
            "the white plate is enough",
        )
        scene.record.cancelled_at = done
        scene.note(f"red plate: cancelled with {done} tiles done, now {status}", "bold yellow")
        scene.wait_until(
            "the red plate is REVOKED", lambda: _status(connection, scene.red) in FINAL
        )
        scene.note(f"red plate: {_status(connection, scene.red)}, its last lease is back", "green")


def retry_one_job(scene: Scene, deliver: Callable[[], int]) -> None:
    """Let the blue plate fail by its threshold, deliver what was missing, retry what failed."""
    with scene.connect() as connection:
        scene.wait_until(
            "the blue plate has failed", lambda: _status(connection, scene.blue) in FINAL
        )
        status = _status(connection, scene.blue)
        document = _value(connection, "select pyjobs.job_progress(%s)", scene.blue)
        failed = sum(stage["failed"] for stage in document["stages"])
        scene.record.failed_items = failed
        scene.note(f"blue plate: {status}, {failed} tiles had not arrived", "bold red")
        delivered = deliver()
        _value(connection, "select pyjobs.retry_job(%s, failed_only => true)", scene.blue)
        scene.note(f"blue plate: {delivered} tiles delivered, retried for what failed", "")
        scene.wait_until("the blue plate is done", lambda: _status(connection, scene.blue) in FINAL)
        scene.note(f"blue plate: {_status(connection, scene.blue)} in its second run", "green")


FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


def _status(connection: psycopg.Connection[Any], job_id: int) -> str:
    return str(_value(connection, "select status from pyjobs.job where id = %s", job_id))
