"""What the database says at the end: the account of what was thrown at it, and the check.

Every point is a query that anybody can repeat; what is shown is what was run.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg import sql
from rich.markup import escape

if TYPE_CHECKING:
    import psycopg
    from rich.console import Console

    from pyjobs.demo.mischief import Lease, Record


class Question(NamedTuple):
    """A query and the row that it should give."""

    query: str
    expected: tuple[Any, ...]


@dataclass(frozen=True)
class Point:
    """One thing that was thrown at the database, and the questions that show what came of it."""

    thrown: str
    questions: list[Question]


@dataclass(frozen=True)
class Answer:
    question: Question
    columns: tuple[str, ...]
    got: tuple[Any, ...] | None

    @property
    def is_right(self) -> bool:
        return self.got == self.question.expected

    def __str__(self) -> str:
        if self.got is None:
            return "no row"
        return ", ".join(
            f"{column} = {_shown(value)}"
            for column, value in zip(self.columns, self.got, strict=True)
        )


@dataclass(frozen=True)
class Account:
    points: list[tuple[Point, list[Answer]]]

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be; empty where all is well."""
        return [
            f"{point.thrown} Expected {answer.question.expected}, got {answer.got}."
            for point, answers in self.points
            for answer in answers
            if not answer.is_right
        ]


@dataclass(frozen=True)
class Setup:
    """The demo's three jobs, by id, and what was put into them."""

    survey: int
    red: int
    blue: int
    tiles: int  # of the survey
    damaged: tuple[int, ...]  # which of them arrived so
    blue_tiles: int
    blue_missing: int  # not there yet in the first run
    plain_rows: int  # of the catalogue that the plain process made

    @property
    def jobs(self) -> list[int]:
        return [self.survey, self.red, self.blue]


def make_points(setup: Setup, record: Record) -> list[Point]:
    """What to ask, given what was done."""
    points: list[Point] = []
    if record.killed is not None:
        points.append(_lost_lease(record.killed))
    if record.suspended is not None:
        points.append(_late_result(record.suspended))
    points += [
        _damaged_tiles(setup),
        _cancelled_job(setup),
        _failed_job(setup),
        _exact_counts(setup),
        _same_catalogue(setup),
        _nothing_stuck(setup),
    ]
    return points


def _question(query: LiteralString, expected: tuple[Any, ...], **values: object) -> Question:
    literals = {
        name: sql.SQL(", ").join(map(sql.Literal, value))
        if isinstance(value, list)
        else sql.Literal(value)
        for name, value in values.items()
    }
    return Question(sql.SQL(query).format(**literals).as_string(), expected)


def _counts_once(lease: Lease) -> Question:
    """The batch counts once, by a later lease; nothing that the lost one wrote is there."""
    return _question(
        "select state::text, lease_epoch > {epoch} as by_later_lease,\n"
        "  (select count(*) from survey.source where batch_id = {batch}\n"
        "    and lease_epoch = {epoch}) as rows_of_that_lease\n"
        "from pyjobs.batch where id = {batch}",
        ("recorded", True, 0),
        batch=lease.batch_id,
        epoch=lease.lease_epoch,
    )


def _lost_lease(lost: Lease) -> Point:
    return Point(
        f"{lost.worker} was ended by kill -9 while it held batch {lost.batch_id},"
        f" {lost.rows} rows written and not committed.",
        [_counts_once(lost)],
    )


def _late_result(late: Lease) -> Point:
    return Point(
        f"{late.worker} was suspended past its lease of batch {late.batch_id} and came back"
        f" with {late.rows} rows.",
        [
            _counts_once(late),
            _question(
                "select sqlstate, class from pyjobs.refused\n"
                "where batch_id = {batch} and lease_epoch = {epoch}",
                ("PJ001", "suspicious"),
                batch=late.batch_id,
                epoch=late.lease_epoch,
            ),
        ],
    )


def _damaged_tiles(setup: Setup) -> Point:
    return Point(
        f"{len(setup.damaged)} of {setup.tiles} tiles arrived damaged. They failed as items, not"
        " with their batches.",
        [
            _question(
                "select p->'stages'->1->'total' as tiles,\n"
                "  p->'stages'->1->'failed' as failed, (select count(distinct tile)\n"
                "    from survey.source where job_id = {job}) as surveyed\n"
                "from pyjobs.job_progress({job}) p",
                (setup.tiles, len(setup.damaged), setup.tiles - len(setup.damaged)),
                job=setup.survey,
            ),
            _question(
                "select count(*) as rows_of_damaged_tiles from survey.source\n"
                "where job_id = {job} and tile in ({tiles})",
                (0,),
                job=setup.survey,
                tiles=list(setup.damaged),
            ),
        ],
    )


def _cancelled_job(setup: Setup) -> Point:
    return Point(
        f"Job {setup.red}, the red plate, was cancelled half way.",
        [
            _question(
                "select p->'summary'->>'status' as status,\n"
                "  p->'stages'->1->'leased' as leased,\n"
                "  p->'stages'->1->'counters'->'sources' = to_jsonb((select count(*)\n"
                "    from survey.source where job_id = {job})) as rows_as_counted\n"
                "from pyjobs.job_progress({job}) p",
                ("REVOKED", 0, True),
                job=setup.red,
            ),
        ],
    )


def _failed_job(setup: Setup) -> Point:
    return Point(
        f"Job {setup.blue}, the blue plate, failed: {setup.blue_missing} of its"
        f" {setup.blue_tiles} tiles had not arrived. Those alone were done again.",
        [
            _question(
                "select string_agg(format('%s in run %s', to_status, run), ', '\n"
                "  order by at) as ends\n"
                "from pyjobs.job_history({job})\n"
                "where to_status in ('SUCCESS', 'FAILURE', 'REVOKED')",
                ("FAILURE in run 1, SUCCESS in run 2",),
                job=setup.blue,
            ),
            _question(
                "select p->'stages'->0->'total' as items_of_run_2,\n"
                "  (select count(distinct tile) from survey.source\n"
                "    where job_id = {job}) as tiles_surveyed\n"
                "from pyjobs.job_progress({job}) p",
                (setup.blue_missing, setup.blue_tiles),
                job=setup.blue,
            ),
        ],
    )


def _exact_counts(setup: Setup) -> Point:
    return Point(
        "All workers counted sources at once, in transactions that were committed, lost or"
        " refused.",
        [
            _question(
                "select p->'summary'->>'status' as status,\n"
                "  p->'stages'->1->'counters'->'sources' = to_jsonb((select count(*)\n"
                "    from survey.source where job_id = {job})) as rows_as_counted\n"
                "from pyjobs.job_progress({job}) p",
                ("SUCCESS", True),
                job=setup.survey,
            ),
            _question(
                "select count(*) as discrepancies\n"
                "from unnest(array[{jobs}]) job, pyjobs.audit_job(job)",
                (0,),
                jobs=setup.jobs,
            ),
        ],
    )


def _same_catalogue(setup: Setup) -> Point:
    return Point(
        "A single plain process, without any of this, surveyed the same picture.",
        [
            _question(
                "select count(*) as rows_that_differ, (select count(*)\n"
                "  from survey.catalogue where job_id = {job}) as sources\n"
                "from ((table survey.catalogue except table survey.plain) union all\n"
                "  (table survey.plain except table survey.catalogue)) d\n"
                "where job_id = {job}",
                (0, setup.plain_rows),
                job=setup.survey,
            ),
        ],
    )


def _nothing_stuck(setup: Setup) -> Point:
    return Point(
        "Nothing may be left over: no job unfinished, no batch out.",
        [
            _question(
                "select string_agg(status::text, ', ' order by id) as jobs,\n"
                "  (select count(*) from pyjobs.batch\n"
                "    where job_id = any(array[{jobs}]) and state = 'leased') as leased\n"
                "from pyjobs.job where id = any(array[{jobs}])",
                ("SUCCESS, REVOKED, SUCCESS", 0),
                jobs=setup.jobs,
            ),
        ],
    )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def take_account(connection: psycopg.Connection[Any], points: list[Point]) -> Account:
    """Ask all the questions."""
    return Account([(point, [_ask(connection, q) for q in point.questions]) for point in points])


def _ask(connection: psycopg.Connection[Any], question: Question) -> Answer:
    cursor = connection.execute(question.query.encode())
    columns = tuple(column.name for column in cursor.description or ())
    return Answer(question, columns, cursor.fetchone())


def show(console: Console, account: Account) -> None:
    """Print the account, for 80 columns."""
    for number, (point, answers) in enumerate(account.points, start=1):
        thrown = textwrap.fill(f"{number}. {point.thrown}", 78, subsequent_indent="   ")
        console.print(escape(thrown), style="bold", highlight=False)
        for answer in answers:
            for line in answer.question.query.splitlines():
                console.print(f"      {escape(line)}", style="dim", highlight=False)
            mark, style = ("ok", "green") if answer.is_right else ("WRONG", "bold red")
            console.print(f"   [{style}]{mark}[/]  {escape(str(answer))}", highlight=False)
