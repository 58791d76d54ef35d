"""Every public function under arguments that nobody should send, on jobs in every state.

Each call ends in one of the project's own SQLSTATEs or is taken; one that is refused has changed
no row of any table, no setting and no lock; one that is taken leaves every rule kept and every
reader working. What a type's own input refuses never reaches a function: SERVER_REFUSES in
tests/support/hostile.py lists that, and it is asked for anew each time.

The everyday share is small and always the same. `make fuzz` makes 1,000 random calls of each
function; PYJOBS_FUZZ=20000 makes more. What fails is written down as lines for psql.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.pq import ExecStatus
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader

from tests.support.hostile import SERVER_REFUSES, Target, calls
from tests.support.rules import FINAL, broken_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.hostile import Value

    Connection = psycopg.Connection[Any]

ROOT = Path(__file__).parents[1]
POPULATION = ROOT / "tests" / "support" / "population.sql"
FUNCTIONS = sorted(
    path.stem
    for folder in ("producer", "worker", "operator", "reader")
    for path in (ROOT / "sql" / folder).glob("*.sql")
)
READERS = {path.stem for path in (ROOT / "sql" / "reader").glob("*.sql")}
OWN = {f"PJ00{number}" for number in range(1, 8)}
EVERY_DAY = 8
AT_LENGTH = int(os.environ.get("PYJOBS_FUZZ", "1000"))

# What a call may not leave behind in its session, were it taken or not.
_SESSION = """
    select current_setting('lock_timeout'), current_setting('statement_timeout'),
        current_setting('search_path'), current_setting('plan_cache_mode'), current_user,
        (select count(*) from pg_locks l
         where l.pid = pg_backend_pid() and l.locktype = 'advisory' and not l.granted)
"""


@dataclass
class Answer:
    """How the server answered: the SQLSTATE, or what it returned."""

    sqlstate: str | None
    message: str
    rows: list[tuple[str | None, ...]]


class Population:
    """A database with jobs in every state, to which every call is made, and undone."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        # Times and numbers go beyond Python's; json.loads and the rules need neither.
        conn.adapters.register_loader("timestamptz", TextLoader)
        set_json_loads(loads, conn)
        conn.execute(POPULATION.read_bytes())
        tables = conn.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables"
            " where schemaname like 'pyjobs%' order by 1"
        ).fetchall()
        # Ordered: a server with a worker to spare appends the tables in parallel.
        self._look = (
            " union all ".join(
                f"select '{name}', count(*),"
                f" coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) from {name} t"
                for (name,) in tables
            )
            + " order by 1"
        )
        self.signatures = {
            name: dict(zip(names or [], types or [], strict=True))
            for name, names, types in conn.execute(
                "select p.proname::text, p.proargnames[1:p.pronargs]::text[],"
                " (select array_agg(format_type(t.oid, null) order by t.n)"
                "  from unnest(p.proargtypes) with ordinality t (oid, n))"
                " from pg_proc p where p.pronamespace = 'pyjobs'::regnamespace"
            ).fetchall()
        }
        self.required = dict(
            conn.execute(
                "select p.proname::text, p.pronargs - p.pronargdefaults from pg_proc p"
                " where p.pronamespace = 'pyjobs'::regnamespace"
            ).fetchall()
        )
        self.targets = [
            Target(*row)
            for row in conn.execute(
                "select j.id, coalesce(b.id, 0), coalesce(b.lease_epoch, 0),"
                " coalesce(b.item_count, 1), coalesce(b.state = 'leased', false),"
                " j.status::text, j.sealed"
                " from pyjobs.job j left join pyjobs_internal.batch b on b.job_id = j.id"
                " order by 1, 2"
            ).fetchall()
        ]
        # Half of them are batches that are leased: there the most can happen.
        leased = [target for target in self.targets if target.leased]
        self.targets += leased * (len(self.targets) // len(leased))
        self.tally: Counter[tuple[str, str]] = Counter()
        self.at_rest = self.look()

    def look(self) -> list[tuple[Any, ...]]:
        """What all tables hold, and the session's state."""
        rows = self.conn.execute(self._look.encode()).fetchall()
        return [*rows, *self.conn.execute(_SESSION.encode()).fetchall()]

    def send(self, query: str, values: list[Value]) -> Answer:
        """Send it as a client does: the values' texts apart from the statement."""
        result = self.conn.pgconn.exec_params(
            query.encode(), [v.encode() if isinstance(v, str) else v for v in values]
        )
        if result.status == ExecStatus.TUPLES_OK:
            rows = [
                tuple(
                    None if (one := result.get_value(row, column)) is None else one.decode()
                    for column in range(result.nfields)
                )
                for row in range(result.ntuples)
            ]
            return Answer(None, "", rows)
        state = result.error_field(ord("C"))
        assert state is not None
        return Answer(state.decode(), result.error_message.decode("utf-8", "replace"), [])

    def call(self, steps: list[tuple[str, dict[str, Value]]]) -> None:
        """Make these calls one after the other, judge each, and undo them all."""
        self.conn.execute("begin; savepoint before_it")
        before: list[Any] | None = self.at_rest
        try:
            for name, arguments in steps:
                answer = self.send(*self.query(name, arguments))
                if answer.sqlstate is None:
                    self.judge_taken(name, arguments, answer, before)
                    before = before if name in READERS else None
                    self.conn.execute("release before_it; savepoint before_it")
                else:
                    self.judge_refused(name, arguments, answer, before)
            self.tally[steps[-1][0], answer.sqlstate or "taken"] += 1
        except AssertionError as error:
            error.add_note(f"to see it again: {self.lines(steps)}")
            raise
        finally:
            self.conn.execute("rollback")

    def query(self, name: str, arguments: dict[str, Value]) -> tuple[str, list[Value]]:
        """The call as a statement, and its values."""
        listed = ", ".join(
            f"{argument} => ${number}::{self.signatures[name][argument]}"
            for number, argument in enumerate(arguments, 1)
        )
        return f"select * from pyjobs.{name}({listed})", list(arguments.values())

    def judge_refused(
        self, name: str, arguments: dict[str, Value], answer: Answer, before: list[Any] | None
    ) -> None:
        """An own SQLSTATE, or the server's own where it never reached the function."""
        self.conn.execute("rollback to before_it")
        if answer.sqlstate not in OWN:
            assert answer.sqlstate in SERVER_REFUSES, answer
            casts = ", ".join(
                f"${n}::{self.signatures[name][argument]}"
                for n, argument in enumerate(arguments, 1)
            )
            alone = self.send(f"select {casts}", list(arguments.values()))
            assert alone.sqlstate == answer.sqlstate, (answer, "raised inside the function")
            self.conn.execute("rollback to before_it")
        if before is not None:
            assert self.look() == before, "a refused call has changed something"

    def judge_taken(
        self, name: str, arguments: dict[str, Value], answer: Answer, before: list[Any] | None
    ) -> None:
        """The rules are kept, the readers work; and what workers do next is taken, too."""
        if name in READERS:
            assert before is None or self.look() == before, "a reader has changed something"
            return
        if crc32(repr(arguments).encode()) % 6:  # a sixth of them: it takes most of the time
            return
        assert self.look()[-1] == self.at_rest[-1], "the session is not as it was"
        assert broken_rules(self.conn, alone=True) == []
        job = answer.rows[0][0] if name == "enqueue_job" else arguments.get("job_id")
        self.conn.execute("savepoint look_on")
        self.carry_on(job if isinstance(job, str) else None)
        self.conn.execute("rollback to look_on; release look_on")

    def carry_on(self, job: str | None) -> None:
        """Work what there is now, and look at all of it."""
        more = self.send(
            "select array_agg(c.batch_id), array_agg(c.lease_epoch) from"
            + (
                " pyjobs.claim_next_batch($1::bigint, 'after', 3) c"
                if job
                else " pyjobs.claim_next_job('after', '{q,q2,done}', 3) c where $1::bigint is null"
            ),
            [job],
        )
        assert more.sqlstate is None, more
        if more.rows[0][0] is not None:
            done = self.send(
                "select * from pyjobs.record_batches($1::bigint[], $2::bigint[])", [*more.rows[0]]
            )
            assert done.sqlstate is None, done
        seen = self.send(
            "select j.*, pyjobs.job_progress(j.id), (select count(e) from pyjobs.explain_job(j.id)"
            " e), (select count(h) from pyjobs.job_history(j.id) h) from pyjobs.job j"
            " where j.id = $1::bigint or $1 is null and j.id % 5 = 0",
            [job],
        )
        assert seen.sqlstate is None, seen
        told = self.send("select * from pyjobs.queue_stats(), pyjobs.active_workers()", [])
        assert told.sqlstate is None, told

    def lines(self, steps: list[tuple[str, dict[str, Value]]]) -> str:
        """What makes the same calls from psql, in a database that was just migrated."""
        statements = "\n".join(
            "select * from pyjobs.{}({});".format(
                name,
                ", ".join(
                    f"{argument} => {literal(value)}::{self.signatures[name][argument]}"
                    for argument, value in arguments.items()
                ),
            )
            for name, arguments in steps
        )
        file = Path(tempfile.gettempdir(), f"pyjobs-fuzz-{steps[-1][0]}.sql")
        file.write_text(statements + "\n", encoding="utf-8")
        shown = f"{statements[:1000]} ..." if len(statements) > 1000 else statements
        return f"psql -f tests/support/population.sql -f {file}\n{shown}"


def literal(value: Value) -> str:
    """A value as psql takes it."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return "E'" + "".join(f"\\x{byte:02x}" for byte in value) + "'"
    return "E'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def loads(text: str | bytes) -> Any:
    """As json.loads, for what it does not take: numbers of many digits, and very deep documents."""
    try:
        return json.loads(
            text, parse_int=lambda digits: digits if len(digits) > 4000 else int(digits)
        )
    except RecursionError:
        return outline(text if isinstance(text, str) else text.decode())


def outline(text: str) -> Any:
    """A deep document down to its first level: as many nulls as it has elements."""
    depth, commas = 0, 0
    found: list[str] = []
    parts = re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]', text)
    for number, part in enumerate(parts):
        depth += (part in "[{") - (part in "]}")
        if depth == 1 and part == ",":
            commas += 1
        if depth == 1 and part == ":":
            found.append(json.loads(parts[number - 1]))
    return dict.fromkeys(found) if text.startswith("{") else [None] * (commas + 1)


@pytest.fixture
def population(db: Connection) -> Population:
    return Population(db)


def test_the_population_is_in_every_state_and_keeps_the_rules(db: Connection) -> None:
    people = Population(db)
    assert broken_rules(db) == []
    assert {status for (status,) in db.execute("select status from pyjobs.job")} == {
        *("CREATED", "PENDING", "STARTED", "RETRY", "CANCELING", "UNKNOWN"),
        *("SUCCESS", "FAILURE", "REVOKED"),
    }
    assert {state for (state,) in db.execute("select state from pyjobs.batch")} == {
        *("pending", "leased", "recorded", "failed"),
    }
    assert people.look() == people.at_rest


def test_every_public_function_is_fuzzed(population: Population) -> None:
    """As the catalogue has them."""
    assert sorted(population.signatures) == FUNCTIONS


# Jobs that these can do something with are few.
PREFERRED: dict[str, Callable[[Target], bool]] = {
    "add_items": lambda target: not target.sealed and target.status not in FINAL,
    "resolve_job": lambda target: target.status == "UNKNOWN",
    "retry_job": lambda target: target.status in FINAL,
}


def fuzz(population: Population, name: str, **how: Any) -> None:
    """Call one function at random; at times others before it, on the same batch or job."""
    everybody = population.targets
    if name in PREFERRED:
        some = [target for target in everybody if PREFERRED[name](target)]
        everybody = everybody + some * (2 * len(everybody) // len(some))

    @st.composite
    def steps(draw: st.DrawFn) -> list[tuple[str, dict[str, Value]]]:
        chosen = draw(st.lists(st.sampled_from(everybody), min_size=1, max_size=4, unique=True))
        first = draw(st.lists(st.sampled_from(FUNCTIONS), max_size=1))
        return [
            (one, draw(calls(population.signatures[one], population.required[one], chosen)))
            for one in [*first, name]
        ]

    @settings(deadline=None, suppress_health_check=list(HealthCheck), **how)
    @given(steps())
    def call(calls: list[tuple[str, dict[str, Value]]]) -> None:
        population.call(calls)

    call()


def test_a_little_of_everything(population: Population) -> None:
    """The same few calls of each function every time."""
    for name in FUNCTIONS:
        fuzz(population, name, max_examples=EVERY_DAY, derandomize=True, database=None)


@pytest.mark.fuzz
@pytest.mark.timeout(0 if AT_LENGTH > 1000 else 600)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_length(population: Population, name: str) -> None:
    """Random calls, at least 1,000."""
    fuzz(population, name, max_examples=AT_LENGTH, print_blob=True)
    print(sorted(population.tally.items()))
    assert population.tally[name, "taken"] >= AT_LENGTH // 10, "too few calls get far"


@pytest.mark.fuzz
@pytest.mark.timeout(600)
def test_arguments_of_hundreds_of_megabytes_get_an_answer(
    population: Population, connect: Callable[..., Connection]
) -> None:
    """Of 200 MB each: taken, or refused in a few words, in memory of some such arguments."""
    batch = next(target for target in population.targets if target.leased)
    lease = f"{batch.batch_id}, {batch.lease_epoch}"
    text = f"repeat('x', {200 << 20})"
    for call, taken in (
        (f"pause_queue({text})", False),
        (f"enqueue_job('q', stages => array[{text}])", False),
        (f"cancel_job({batch.job_id}, {text})", False),
        (f"claim_next_job({text})", False),
        (f"report_refused({lease}, {text})", False),
        (f"enqueue_job('q', to_jsonb({text}))", False),
        (f"record_batch({lease}, to_jsonb({text}))", False),
        (f"record_batch({lease}, jsonb_build_array(to_jsonb({text})))", False),
        (f"record_batch({lease}, counters => jsonb_build_object('n', {text}))", False),
        (f"enqueue_job('q', jsonb_build_array({text}))", True),
        (f"enqueue_job('q', params => to_jsonb({text}))", True),
    ):
        conn = connect(autocommit=False)
        refused = None
        try:
            conn.execute(f"select count(*) from (select pyjobs.{call}) c".encode())
        except psycopg.Error as error:
            refused = error
        assert (refused is None) == taken, (call, refused)
        assert refused is None or refused.sqlstate == "PJ005", (call, refused)
        assert len(str(refused)) < 2000, call
        status = Path(f"/proc/{conn.info.backend_pid}/status")
        conn.rollback()
        if status.exists():  # the server is on this machine
            most = re.search(r"VmHWM:\s+(\d+) kB", status.read_text("utf-8"))
            assert most is not None
            assert int(most[1]) < 16 * (200 << 10), call
        conn.close()
    assert population.look() == population.at_rest
