"""The demo: in a pipe, on a terminal, in somebody's database, and with its check made to fail."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image, ImageChops
from rich.console import Console

from pyjobs import demo
from pyjobs.demo import check, plain, science
from pyjobs.demo.display import JobView, LineBoard, LiveBoard, Note, Snapshot, StageView, WorkerView
from pyjobs.demo.mischief import Lease, Record

TIME_LIMIT = 300  # seconds, on a machine that has much else to do
QUICK = 0.03  # seconds a tile, where nobody watches


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pyjobs.demo", *arguments]


@pytest.mark.slow
@pytest.mark.timeout(TIME_LIMIT)
def test_in_a_pipe_it_ends_well_and_every_line_of_it_reads_well(tmp_path: Path) -> None:
    # One test for all of it: the run takes half a minute, and several processes run the tests.
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        _command("--pace", str(QUICK)),
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "All of it holds" in done.stdout
    _shows_each_mischief_as_it_happens(done.stdout)
    _accounts_for_each_with_the_query_and_its_answer(done.stdout)
    _prints_plain_lines_of_80_columns(done.stdout)
    _draws_the_catalogue_of_the_plain_survey(tmp_path / "hubble-survey.png", tmp_path)
    # Nothing is left behind but the picture.
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"tmp", "hubble-survey.png", "plain.png"}


def _shows_each_mischief_as_it_happens(output: str) -> None:
    for event in (
        r"kill -9 of worker-\d: batch \d+, \d+ rows not committed",
        r"worker-\d is suspended: batch \d+, \d+ rows not committed",
        r"the late result of worker-\d is refused with its rows",
        r"red plate: cancelled with \d+ tiles done",
        r"blue plate: FAILURE, 28 tiles had not arrived",
        r"blue plate: SUCCESS in its second run",
        r"worker-\d: tile \d+ fails: poisoned",
        r"worker-\d: tile \d+ fails: truncated",
    ):
        assert re.search(event, output), (event, output)


def _accounts_for_each_with_the_query_and_its_answer(output: str) -> None:
    account = output.partition("What was thrown at it")[2]
    assert len(re.findall(r"^\d\. ", account, re.MULTILINE)) == 8
    for answer in (
        "by_later_lease = true, rows_of_that_lease = 0",
        "sqlstate = PJ001, class = suspicious",
        "tiles = 360, failed = 7, surveyed = 353",
        "status = REVOKED, leased = 0, rows_as_counted = true",
        "ends = FAILURE in run 1, SUCCESS in run 2",
        "items_of_run_2 = 28, tiles_surveyed = 48",
        "discrepancies = 0",
        "rows_that_differ = 0",
        "jobs = SUCCESS, REVOKED, SUCCESS, leased = 0",
    ):
        assert answer in account, account


def _prints_plain_lines_of_80_columns(output: str) -> None:
    assert "\x1b" not in output
    lines = output.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    # How far the jobs are, now and then and not all the time.
    assert 2 <= sum(bool(re.search(r"s  white \w+ \d+/\d+", line)) for line in lines) <= 60


def _draws_the_catalogue_of_the_plain_survey(drawn: Path, folder: Path) -> None:
    picture = science.load_picture()
    items = science.tile_items(science.make_plate(picture, "white"))
    bad = [items[tile] for tile in science.choose_damage(len(items))]
    science.draw_catalogue(picture, plain.survey("white"), bad, folder / "plain.png")
    with Image.open(drawn) as ours, Image.open(folder / "plain.png") as theirs:
        assert ImageChops.difference(ours, theirs).getbbox() is None


def _run_on_terminal(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run the demo on a terminal of 80 columns and 24 lines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    with subprocess.Popen(
        _command(*arguments),
        cwd=folder,
        env=environment | {"TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            output += chunk
        status = process.wait()
    os.close(ours)
    return status, output.decode()


@pytest.mark.long
@pytest.mark.timeout(TIME_LIMIT)
def test_on_a_terminal_shows_bars_and_keeps_the_server_if_asked(tmp_path: Path) -> None:
    status, output = _run_on_terminal(["--keep", "--pace", str(QUICK)], tmp_path)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "")
    assert status == 0, text[-4000:]
    assert "━" in text
    assert "behind the barrier" in text
    psql = re.search(r"Look around with\n  (.+)\n", text)
    stop = re.search(r"^  (kill -INT .+)$", text, re.MULTILINE)
    assert psql is not None
    assert stop is not None
    try:
        seen = subprocess.run(
            ["sh", "-c", f"{psql[1]} -Atc 'select count(*) from survey.catalogue'"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(seen.stdout) == len(plain.survey("white"))
    finally:
        subprocess.run(["sh", "-c", stop[1]], check=True)
    for folder in stop[1].partition("rm -r ")[2].split():
        assert not Path(folder).exists()
    gone = subprocess.run(["sh", "-c", f"{psql[1]} -c ''"], capture_output=True, check=False)
    assert gone.returncode != 0


# What must not go unnoticed: one statement each, done when all is over and nothing is checked yet.
SABOTAGE = {
    "a catalogue row missing": "delete from survey.catalogue where number = 7",
    "a catalogue row moved": "update survey.catalogue set x = x + 0.001 where number = 7",
    "a catalogue row twice": (
        "insert into survey.catalogue select job_id, 100000, x, y, a, b, theta, flux, npix, tile,"
        " seen_in from survey.catalogue where number = 7"
    ),
    "a source lost": (
        "delete from survey.source where job_id = {survey} and (batch_id, tile, number) = (select"
        " batch_id, tile, number from survey.source where job_id = {survey} limit 1)"
    ),
    "a row of the killed worker": (
        "insert into survey.source values"
        " ({survey}, {killed_batch}, {killed_epoch}, '', 1, 1, 1, 1, 1, 1, 1, 1, 1, true)"
    ),
    "a row of the late result": (
        "insert into survey.source values"
        " ({survey}, {late_batch}, {late_epoch}, '', 1, 1, 1, 1, 1, 1, 1, 1, 1, true)"
    ),
    "a refusal not kept": "delete from pyjobs_internal.refusal where batch_id = {late_batch}",
    "a source of a damaged tile": (
        "update survey.source set tile = {damaged} where job_id = {survey}"
        " and tile = (select min(tile) from survey.source where job_id = {survey})"
    ),
    "a cancelled job's result that was not counted": (
        "insert into survey.source values ({red}, 0, 0, '', 1, 1, 1, 1, 1, 1, 1, 1, 1, true)"
    ),
    "a tile of the retried job missing": (
        "delete from survey.source where job_id = {blue} and tile = 47"
    ),
    "a count that drifted": (
        "update pyjobs_internal.stage set succeeded = succeeded - 1 where job_id = {survey}"
    ),
}


@pytest.mark.long
@pytest.mark.timeout(TIME_LIMIT)
def test_in_somebodys_database_the_check_finds_every_sabotage(dsn: str, tmp_path: Path) -> None:
    printed = io.StringIO()
    found: dict[str, list[str]] = {}

    def sabotage(url: str, setup: check.Setup, record: Record) -> None:
        assert record.killed is not None
        assert record.suspended is not None
        names: dict[str, Any] = {
            "survey": setup.survey,
            "red": setup.red,
            "blue": setup.blue,
            "damaged": setup.damaged[0],
            "killed_batch": record.killed.batch_id,
            "killed_epoch": record.killed.lease_epoch,
            "late_batch": record.suspended.batch_id,
            "late_epoch": record.suspended.lease_epoch,
        }
        points = check.make_points(setup, record)
        with psycopg.connect(url) as connection:
            assert check.take_account(connection, points).wrong == []
            for what, statement in SABOTAGE.items():
                done = connection.execute(statement.format(**names).encode())
                assert done.rowcount > 0, what
                found[what] = check.take_account(connection, points).wrong
                connection.rollback()
        # A job that is not final is not let pass either.
        stuck = dataclasses.replace(setup, red=demo_job(url))
        with psycopg.connect(url) as connection:
            found["a stuck job"] = check.take_account(
                connection, check.make_points(stuck, record)
            ).wrong
            # This one stays, for the end of the demo to find.
            connection.execute("delete from survey.catalogue where number = 1")

    def demo_job(url: str) -> int:
        with psycopg.connect(url) as connection:
            (job,) = connection.execute("select pyjobs.enqueue_job('nobody')").fetchone() or (0,)
            return int(job)

    options = demo.Options(database_url=dsn, output=tmp_path / "survey.png", pace=QUICK, keep=False)
    status = demo.run(options, Console(file=printed, width=80), sabotage)
    assert {what: wrong for what, wrong in found.items() if not wrong} == {}
    assert len(found) == len(SABOTAGE) + 1
    assert status == 1, printed.getvalue()
    assert "WRONG: A single plain process" in printed.getvalue()
    assert "All of it holds" not in printed.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(TIME_LIMIT)
def test_a_worker_that_ends_by_itself_ends_the_demo_and_says_why(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'pyjobs.demo.worker' in sys.orig_argv:\n    sys.exit('no workers today')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    printed = io.StringIO()
    options = demo.Options(database_url=dsn, output=tmp_path / "survey.png")
    assert demo.run(options, Console(file=printed, width=80)) == 1
    assert "ended by itself" in printed.getvalue()
    assert "no workers today" in printed.getvalue()


def test_a_demo_in_which_nothing_was_done_to_it_does_not_pass() -> None:
    assert len(Record().missing) == 4
    lease = Lease("worker-2", 1, 1, 10)
    assert Record(lease, lease, cancelled_at=180, failed_items=28).missing == []


def test_says_what_to_install_where_a_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyjobs.demo.survey", "pyjobs.demo.science"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.delattr(demo, module.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "sep", None)
    printed = io.StringIO()
    assert demo.run(console=Console(file=printed, width=80)) == 2
    assert "pip install 'pyjobs[binary,embedded,demo]'" in printed.getvalue()


def test_says_at_once_where_the_picture_cannot_be_written(tmp_path: Path) -> None:
    printed = io.StringIO()
    options = demo.Options(output=tmp_path / "nowhere" / "survey.png")
    assert demo.run(options, Console(file=printed, width=80)) == 1
    assert "--output" in printed.getvalue()


@pytest.fixture
def snapshot() -> Snapshot:
    """The most that the demo ever shows at once."""
    stages = [
        StageView("collect", "done", 1, 1, 0),
        StageView("process", "running", 360, 180, 7),
        StageView("results", "waiting", 1, 0, 0),
    ]
    jobs = [
        JobView("white plate", "STARTED", 1, stages),
        JobView("red plate", "CANCELING", 1, stages),
        JobView("blue plate", "RETRY", 2, [StageView("process", "running", 28, 6, 0)]),
    ]
    doing = "batch 1057, lease 1: tile 212 of the white plate"
    workers = [WorkerView(f"worker-{n}", 4194303, "suspended", doing) for n in range(1, 6)]
    return Snapshot(17.3, jobs, workers)


def test_the_board_fits_a_terminal_of_80_columns_and_24_lines(snapshot: Snapshot) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=80, height=24, force_terminal=True, color_system=None)
    board = LiveBoard(console)
    for second in range(40):
        board.note(Note(float(second), f"event {second}: " + "x" * 100))
    console.print(board.render(snapshot))
    lines = printed.getvalue().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "event 39" in lines[-1]
    for expected in ("white plate", "CANCELING", "180/360", "behind the barrier", "worker-5"):
        assert any(expected in line for line in lines), expected


def test_in_a_pipe_progress_is_a_line_now_and_then(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("pyjobs.demo.display.time.monotonic", lambda: clock)
    printed = io.StringIO()
    with LineBoard(Console(file=printed, width=80)) as board:
        for _ in range(100):
            clock += 0.1
            board.update(snapshot)
    lines = printed.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == " 17.3s  white STARTED 181/362 | red CANCELING 181/362 | blue RETRY 6/28"
