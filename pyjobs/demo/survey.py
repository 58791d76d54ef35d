"""The demo from beginning to end: a server, three jobs, four workers, mischief, and the account."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pyjobs
from pyjobs import embedded
from pyjobs.demo import check, mischief, science
from pyjobs.demo.display import JobView, Note, Snapshot, StageView, make_board
from pyjobs.demo.processes import DemoError, Ears, WorkerProcess
from pyjobs.embedded import ServerError
from pyjobs.migrate import MigrationError, migrate

if TYPE_CHECKING:
    from rich.console import Console

    from pyjobs.demo import Checkpoint, Options
    from pyjobs.demo.display import Board

BATCH_SIZE = 6  # tiles that are leased, worked and recorded as one
BLUE_TILES = 48
BLUE_MISSING = 28  # of them, in the first run: more than half, so that the job fails
TIME_LIMIT = 240.0  # seconds; what is not done by then is stuck, even on a busy machine

WHITE, RED, BLUE = "white plate", "red plate", "blue plate"


@dataclass(frozen=True)
class Place:
    """Where the demo runs."""

    url: str
    queue: str
    folder: Path  # for the tiles' files and the workers' logs
    server: embedded.EmbeddedServer | None

    @property
    def psql(self) -> str:
        if self.server is not None:
            return shlex.join([self.server.psql_path, self.url])
        # Somebody's own: without the password, for it would stay on the screen.
        shown: dict[str, Any] = conninfo_to_dict(self.url)
        shown.pop("password", None)
        return shlex.join(["psql", make_conninfo(**shown)])


@dataclass
class Demo:
    """One run of it."""

    options: Options
    console: Console
    place: Place
    board: Board
    client: pyjobs.Client
    began: float = field(default_factory=time.monotonic)
    ears: Ears = field(default_factory=Ears)
    workers: list[WorkerProcess] = field(default_factory=list)

    def note(self, text: str, style: str = "") -> None:
        self.board.note(Note(time.monotonic() - self.began, text, style))

    def start_worker(self) -> WorkerProcess:
        name = f"worker-{len(self.workers) + 1}"
        worker = WorkerProcess(
            name, self.place.url, self.place.queue, self.place.folder / f"{name}.log", self.ears
        )
        self.workers.append(worker)
        return worker

    # -- the jobs

    def params(self, plate: str) -> dict[str, Any]:
        return {
            "plate": plate,
            "folder": str(self.place.folder),
            "output": str(self.options.output.absolute()),
            "pace": self.options.pace,
            "damaged": plate == "white",
        }

    def enqueue_survey(self, name: str, plate: str) -> int:
        """A job of three stages: `collect` emits the tiles, `results` gets its one item now."""
        job_id = self.client.enqueue_job(
            self.place.queue,
            items=[{"plate": plate}],
            params=self.params(plate),
            batch_size=BATCH_SIZE,
            name=name,
            stages=["collect", "process", "results"],
            barriers=["results"],
            seal=False,
        )
        self.client.add_items(job_id, [{"catalogue": plate}], stage="results")
        self.client.seal_job(job_id)
        return job_id

    def enqueue_blue(self) -> int:
        """A job of one stage, some tiles of which are not there yet."""
        return self.client.enqueue_job(
            self.place.queue,
            items=self.blue_items(),
            params=self.params("blue"),
            batch_size=BATCH_SIZE,
            name=BLUE,
        )

    def blue_items(self) -> list[dict[str, Any]]:
        plate = science.make_plate(science.load_picture(), "blue")
        return science.tile_items(plate)[:BLUE_TILES]

    def deliver_blue(self, items: list[dict[str, Any]]) -> int:
        plate = science.make_plate(science.load_picture(), "blue")
        for item in items:
            (self.place.folder / item["file"]).write_bytes(science.cut_tile(plate, item))
        return len(items)


def run(options: Options, console: Console, before_check: Checkpoint | None) -> int:
    """Run the demo; returns the process's exit status."""
    try:
        return _run(options, console, before_check)
    except (DemoError, ServerError, MigrationError, pyjobs.Error, psycopg.Error) as error:
        console.print(
            f"The demo cannot go on: {error}", style="bold red", markup=False, highlight=False
        )
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything that was started has been stopped.")
        return 130


def _run(options: Options, console: Console, before_check: Checkpoint | None) -> int:
    output = options.output.absolute()
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise DemoError(f"nothing can be written in {output.parent}; choose another --output")
    with ExitStack() as stack:
        place = _make_place(options, console, stack)
        report = migrate(place.url)
        console.print(
            f"Migrated: {len(report.migrations)} migrations and {len(report.files)} files of SQL.",
            highlight=False,
        )
        with psycopg.connect(place.url) as connection:
            connection.execute(Path(__file__).with_name("schema.sql").read_bytes())
        client = stack.enter_context(pyjobs.Client(place.url))
        board = make_board(console)
        demo = Demo(options, console, place, board, client)
        setup, record = _watch(demo)
        if before_check is not None:
            before_check(place.url, setup, record)
        is_good = _tell(demo, setup, record)
        if options.keep:
            _keep(place, console)
        return 0 if is_good else 1


def _make_place(options: Options, console: Console, stack: ExitStack) -> Place:
    folder = Path(tempfile.mkdtemp(prefix="pyjobs-demo-"))
    if not options.keep:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    if options.database_url is not None:
        # Somebody's database: an earlier demo may have left jobs there.
        return Place(options.database_url, f"survey-{secrets.token_hex(3)}", folder, None)
    server = embedded.server()
    stack.callback(lambda: None if options.keep else server.stop())
    console.print(
        "Starting a PostgreSQL server of our own, with durable settings.", highlight=False
    )
    server.start()
    return Place(server.url(), "survey", folder, server)


def _watch(demo: Demo) -> tuple[check.Setup, mischief.Record]:
    """Start everything, show it until all is done, and stop the workers."""
    blue = demo.blue_items()
    demo.deliver_blue(blue[: BLUE_TILES - BLUE_MISSING])
    survey = demo.enqueue_survey(WHITE, "white")
    red = demo.enqueue_survey(RED, "red")
    blue_job = demo.enqueue_blue()
    for _ in range(demo.options.workers):
        demo.start_worker()
    scene = mischief.Scene(
        demo.place.url,
        time.monotonic() + TIME_LIMIT,
        demo.ears,
        demo.note,
        survey,
        red,
        blue_job,
    )
    with demo.board:
        demo.note("three jobs, four workers; the picture is cut into 360 tiles")
        acts = [
            mischief.Act(
                scene,
                mischief.kill_one_worker,
                demo.workers[1],
                lambda: demo.start_worker().name,
            ),
            mischief.Act(scene, mischief.suspend_one_worker, demo.workers[2]),
            mischief.Act(scene, mischief.cancel_one_job),
            mischief.Act(
                scene,
                mischief.retry_one_job,
                lambda: demo.deliver_blue(blue[BLUE_TILES - BLUE_MISSING :]),
            ),
        ]
        try:
            _show_until_done(demo, scene, acts)
        finally:
            scene.stopping.set()
            for act in acts:
                act.join(5)
            for worker in demo.workers:
                worker.stop()
    tiles = len(science.tile_items(science.make_plate(science.load_picture(), "white")))
    setup = check.Setup(
        survey=survey,
        red=red,
        blue=blue_job,
        tiles=tiles,
        damaged=tuple(sorted(science.choose_damage(tiles))),
        blue_tiles=BLUE_TILES,
        blue_missing=BLUE_MISSING,
        plain_rows=_survey_plainly(demo, survey),
    )
    return setup, scene.record


def _show_until_done(demo: Demo, scene: mischief.Scene, acts: list[mischief.Act]) -> None:
    jobs = [scene.survey, scene.red, scene.blue]
    heard = 0
    with scene.connect() as connection:
        while True:
            told = demo.ears.since(heard)
            heard += len(told)
            for one in told:
                if one.what == "bad":
                    demo.note(f"{one.worker}: {one.text}", "red")
            views = _job_views(connection, jobs)
            demo.board.update(
                Snapshot(time.monotonic() - demo.began, views, [w.view() for w in demo.workers])
            )
            is_final = all(view.status in mischief.FINAL for view in views)
            if is_final and not any(act.is_alive() for act in acts):
                return
            if time.monotonic() > scene.deadline:
                scene.record.trouble.append(f"not done within {TIME_LIMIT:.0f} seconds")
                return
            for worker in demo.workers:
                if worker.has_ended_early:
                    raise DemoError(f"{worker.name} ended by itself:\n{worker.last_words()}")
            time.sleep(0.15)


def _job_views(connection: psycopg.Connection[Any], jobs: list[int]) -> list[JobView]:
    rows = connection.execute(
        "select coalesce(name, id::text), run, pyjobs.job_progress(id) from pyjobs.job"
        " where id = any(%s) order by id",
        [jobs],
    ).fetchall()
    return [
        JobView(
            name,
            document["summary"]["status"],
            run_number,
            [
                StageView(s["key"], s["status"], s["total"], s["processed"], s["failed"])
                for s in document["stages"]
            ],
        )
        for name, run_number, document in rows
    ]


def _survey_plainly(demo: Demo, survey: int) -> int:
    """Let a single plain process survey the same picture; its rows go to survey.plain."""
    done = subprocess.run(
        [sys.executable, "-m", "pyjobs.demo.plain", "white"],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise DemoError(f"the plain process failed:\n{done.stderr}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    columns = ", ".join(("job_id", *science.Entry._fields))
    with (
        psycopg.connect(demo.place.url) as connection,
        connection.cursor() as cursor,
        cursor.copy(f"copy survey.plain ({columns}) from stdin".encode()) as copy,
    ):
        for row in rows:
            copy.write_row((survey, *row))
    return len(rows)


def _tell(demo: Demo, setup: check.Setup, record: mischief.Record) -> bool:
    """Print the account; False where anything is not as it should be."""
    console = demo.console
    with psycopg.connect(demo.place.url, autocommit=True) as connection:
        account = check.take_account(connection, check.make_points(setup, record))
        unfinished = [
            row
            for job in (setup.survey, setup.red, setup.blue)
            for row in connection.execute(
                "select id, status, e.finding, e.evidence, e.remedy"
                " from pyjobs.job, pyjobs.explain_job(id) e where id = %s"
                " and status not in ('SUCCESS', 'FAILURE', 'REVOKED')",
                [job],
            )
        ]
    console.print()
    console.rule("What was thrown at it, and what the database says now", align="left")
    check.show(console, account)
    console.print()
    wrong = record.trouble + record.missing + account.wrong
    wrong += [f"Job {row[0]} is {row[1]}: {row[2]}. {row[3]} {row[4]}" for row in unfinished]
    for sentence in wrong:
        console.print(f"WRONG: {sentence}", style="bold red", highlight=False, markup=False)
    seconds = time.monotonic() - demo.began
    if wrong:
        console.print(f"The demo failed after {seconds:.0f} seconds.", style="bold red")
        return False
    console.print(
        f"All of it holds, after {seconds:.0f} seconds. {setup.plain_rows} sources are marked in"
        f" {demo.options.output}",
        style="bold green",
        highlight=False,
        soft_wrap=True,
    )
    return True


def _keep(place: Place, console: Console) -> None:
    console.print("\nLook around with")
    console.print(f"  {place.psql}", soft_wrap=True, markup=False, highlight=False)
    console.print(
        "for instance: select * from pyjobs.job; select * from survey.catalogue limit 5;",
        highlight=False,
    )
    if place.server is not None:
        place.server.detach()
        console.print("The server stays until you stop it and remove its folder by")
        folders = shlex.join([str(place.server.data_dir.parent), str(place.folder)])
        console.print(
            f"  kill -INT {place.server.pid}; sleep 2; rm -r {folders}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
