"""One schedule of one scenario: who goes on at each step, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import select
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tests.explorer.sessions import STUCK, Answer, Control, Link, TroubleError, settle

if TYPE_CHECKING:
    from tests.explorer.instrument import Effect, Place
    from tests.explorer.sessions import Database

_VACUUM_EVERY = 250


@dataclasses.dataclass(frozen=True)
class Op:
    """One statement of a session.

    ``text`` may name fields of earlier answers, ``{got.batch_id}``; with no such row it is left
    out.
    """

    text: str
    kind: Literal["call", "commit", "rollback", "savepoint", "back", "unlock"] = "call"
    into: str | None = None

    @property
    def function(self) -> str | None:
        """The function that is called."""
        named = re.search(r"\bpyjobs\.(\w+)\(", self.text)
        return named[1] if named else None

    def __str__(self) -> str:
        return re.sub(r"^select (\* from )?(pyjobs\.)?", "", self.text)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What there is at the start, and what each session does."""

    name: str
    setup: tuple[str, ...]
    sessions: tuple[tuple[Op, ...], ...]
    jobs: int = 1
    linger: bool = False

    @property
    def may_deadlock(self) -> bool:
        """Whether its callers' own order can make a deadlock.

        That is: with several jobs; where one transaction has several calls of which one is no
        worker's; and where it has in hand several batches, one of which somebody else posts too.
        Else workers' calls on one job never do, in whatever order and number.
        """
        if self.jobs > 1:
            return True
        # The batches that each session names.
        named = [{n for op in ops for n in _batches(op)} for ops in self.sessions]
        for number, ops in enumerate(self.sessions):
            others = set().union(*named[:number], *named[number + 1 :])
            own: set[str | None] = set()
            batches: set[int] = set()
            calls = 0
            for op in ops:
                if op.kind == "call":
                    calls += 1
                    own.add(op.function)
                    batches |= _batches(op)
                elif op.kind in ("commit", "rollback"):
                    if calls > 1 and (not own <= WORKERS or batches & others):
                        return True
                    own, batches, calls = set(), set(), 0
        return False


def _batches(op: Op) -> set[int]:
    """The batches that a worker's call names."""
    if op.function == "record_batches":
        return {int(n) for n in re.findall(r"\d+", op.text.partition("}")[0])}
    if op.function in ("record_batch", "record_and_claim", "release_batch", "extend_lease"):
        return {int(n) for n in re.findall(r"\((\d+),", op.text)}
    return set()


# What workers call. (Only the epoch of a batch decides there, and claims never wait.)
WORKERS = {
    "claim_jobs",
    "claim_next_batch",
    "claim_next_job",
    "extend_lease",
    "record_and_claim",
    "record_batch",
    "record_batches",
    "release_batch",
    "report_refused",
}


class _DeadlockError(Exception):
    """A deadlock that callers made: the server is to find it itself."""

    def __init__(self, waiting: set[int], choices: list[tuple[int, int | str]]) -> None:
        super().__init__()
        self.waiting = waiting
        self.choices = choices


@dataclasses.dataclass
class Step:
    """From one point of a session to its next."""

    session: int
    place: Place | None  # None: the beginning of a statement of the session
    op: int
    kind: str  # step; resume: after a wait; timeout, deadlock: the wait was ended
    effects: frozenset[Effect]
    runnable: tuple[int, ...]
    bounded: tuple[int, ...]  # those that wait no longer than a bound
    current: int | None  # who went before, if it could have gone on
    waits: bool = False  # it came to a lock that it had to wait for
    state: int = 0  # the last state committed when it began

    @property
    def label(self) -> str:
        """The same step of another schedule has the same label."""
        where = f"p{self.place.number}" if self.place else f"o{self.op}"
        return f"{self.session}{where}{self.kind[0]}"


@dataclasses.dataclass
class Call:
    """A statement that a session has made."""

    session: int
    op: Op
    text: str
    began: int  # index of the last state committed before
    answer: Answer | None = None
    answered: int = 0  # the last state committed before its answer
    ended: int | None = None  # the state that its transaction's end made
    kept: bool = False  # committed, and not in a savepoint that was rolled back
    step: int = 0  # index of its last step
    first_step: int = 0
    undisturbed: bool = False  # nobody else had a transaction open, from its beginning to its end
    transaction: int = 0  # of its session


@dataclasses.dataclass
class Outcome:
    """What a schedule came to."""

    scenario: Scenario
    steps: list[Step]
    calls: list[Call]
    states: list[dict[str, Any]]  # after the set-up and after each transaction
    problems: list[str] = dataclasses.field(default_factory=list)
    detected: set[int] = dataclasses.field(default_factory=set)  # had the server's detector on
    diverged: tuple[list[str], list[str]] | None = None  # wanted and got, where they differ

    @property
    def choices(self) -> list[tuple[int, int | str]]:
        """The schedule: who took how many steps in turn; '!' ends a wait by its bound."""
        found: list[list[Any]] = []
        for step in self.steps:
            if step.kind in ("resume", "deadlock"):
                continue
            if step.kind == "timeout":
                found.append([step.session, "!"])
            elif found and found[-1][0] == step.session and found[-1][1] != "!":
                found[-1][1] += 1
            else:
                found.append([step.session, 1])
        return [(s, n) for s, n in found]


class Strategy(Protocol):
    """Says who goes on."""

    def choose(
        self, runnable: list[int], bounded: list[int], current: int | None
    ) -> tuple[int, int | str | None]:
        """A session, and for how many steps: None as many as it can; '!' to end its wait."""

    def passed(self, session: int, steps: int) -> None:
        """The session has gone so many steps."""


class Plan:
    """The given choices, and then each session as far as it can go, the first first."""

    def __init__(self, choices: list[tuple[int, int | str]]) -> None:
        self._left: list[list[Any]] = [list(c) for c in choices]
        self._more = True

    def choose(
        self, runnable: list[int], bounded: list[int], current: int | None
    ) -> tuple[int, int | str | None]:
        while self._left:
            session, steps = self._left[0]
            if steps == "!" and session in bounded:
                self._left.pop(0)
                return session, "!"
            if steps != "!" and steps > 0 and session in runnable:
                return session, steps
            # It waits, or has ended: the rest of its turn falls away.
            self._left.pop(0)
        self._more = False
        if not runnable:
            return bounded[0], "!"
        return (current if current is not None else runnable[0]), None

    def passed(self, session: int, steps: int) -> None:
        if self._left and self._left[0][0] == session and self._left[0][1] != "!":
            self._left[0][1] -= steps

    @property
    def has_more(self) -> bool:
        """Whether the last choice was one of those given."""
        return self._more


class Then:
    """The choices of a plan, as long as it has some, and then those of another strategy."""

    def __init__(self, plan: Plan, strategy: Strategy) -> None:
        self._plan: Plan | None = plan
        self._strategy = strategy

    def choose(
        self, runnable: list[int], bounded: list[int], current: int | None
    ) -> tuple[int, int | str | None]:
        if self._plan is not None:
            chosen = self._plan.choose(runnable, bounded, current)
            if self._plan.has_more:
                return chosen
            self._plan = None
        return self._strategy.choose(runnable, bounded, current)

    def passed(self, session: int, steps: int) -> None:
        (self._plan or self._strategy).passed(session, steps)


@dataclasses.dataclass
class _Session:
    number: int
    link: Link
    ops: tuple[Op, ...]
    at: int = 0  # the statement that it stands before, or is in
    status: str = "ready"  # ready: before a statement; gate; running; waiting; done
    place: int = -1  # where it stands, at a gate
    budget: int | None = None  # steps that it may yet take
    open: bool = False  # a transaction is open
    failed: bool = False
    touched: set[str] = dataclasses.field(default_factory=set)
    kept_locks: set[str] = dataclasses.field(default_factory=set)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    call: Call | None = None
    calls: list[Call] = dataclasses.field(default_factory=list)  # of its transaction
    held: int = 0  # the step that is closed for it
    effects: frozenset[Effect] = frozenset()  # of the step that it is taking

    @property
    def bounded(self) -> bool:
        """Its waits end by their bound."""
        return self.call is not None and self.call.op.function in OPERATORS


OPERATORS = {
    "cancel_job",
    "finalize_job",
    "quarantine_job",
    "resolve_job",
    "retry_job",
    "pause_job",
    "resume_job",
    "pause_queue",
    "resume_queue",
    "set_priority",
    "reap",
    "reap_leases",
}


class Runner:
    """Runs schedules on one database, one after the other."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.control = Control(database)
        self.links: list[Link] = []
        self.runs = 0
        self._sessions: list[_Session] = []
        self._victims: set[int] = set()
        self._by_link: dict[int, _Session] = {}

    def close(self) -> None:
        for link in [self.control, *self.links]:
            link.close()

    def run(self, scenario: Scenario, strategy: Strategy) -> Outcome:
        """Set the scene and let the sessions go, one step at a time.

        Where callers made a deadlock, the same is run again with the server's own detector at work
        in those who waited: then it is the server that refuses one.
        """
        victims: set[int] = set()
        while True:
            self.outcome = Outcome(scenario, [], [], [self._set_up(scenario)])
            for number in victims:
                self.links[number].run("set deadlock_timeout = '1ms'")
            self._victims = victims
            self.outcome.detected = set(victims)
            try:
                self._go(strategy)
            except _DeadlockError as found:
                victims = victims | found.waiting
                strategy = Then(Plan(found.choices), strategy)
            except TroubleError as error:
                # One schedule that cannot be gone through is a failure; the others go on.
                self.outcome.problems.append(f"the explorer: {error}")
                return self.outcome
            else:
                return self.outcome
            finally:
                self._tidy()

    def _set_up(self, scenario: Scenario) -> dict[str, Any]:
        self.runs += 1
        if self.runs % _VACUUM_EVERY == 0:
            self.control.run(f"vacuum {', '.join(self.database.tables)}")
        state = self.control.set_scene(scenario.setup)
        while len(self.links) < len(scenario.sessions):
            link = Link(self.database, len(self.links) + 1)
            link.prepare()
            self.links.append(link)
        self._sessions = [
            _Session(n, self.links[n], ops, status="ready" if ops else "done")
            for n, ops in enumerate(scenario.sessions)
        ]
        self._by_link = {s.link.fd: s for s in self._sessions}
        return state

    def _tidy(self) -> None:
        """Nothing of a schedule is left, whatever came of it."""
        clean = all(s.status == "done" and not s.open for s in self._sessions)
        if clean:
            self.control.run("select pg_advisory_unlock_all()")
            for number in self._victims:
                self.links[number].run("reset deadlock_timeout")
            if self._victims or any(s.kind == "timeout" for s in self.outcome.steps):
                for link in self.links:
                    link.count_steps()
            return
        if self._unwind():
            return
        for link in self.links:
            self.control.run(f"select pg_terminate_backend({link.pid})")
        for link in self.links:
            link.await_end()
        self.links.clear()
        self.control.run("select pg_advisory_unlock_all()")

    def _unwind(self) -> bool:
        """Cancel what is under way, and keep the sessions: their plans took long to make."""
        self.control.run("select pg_advisory_unlock_all()")
        for _ in range(40):
            busy = [link for link in self.links if link.busy]
            if not busy:
                break
            for link in busy:
                self.control.run(f"select pg_cancel_backend({link.pid})")
            select.select([link.fd for link in busy], [], [], 0.05)
            for link in busy:
                link.hear()
        else:
            return False
        for link in self.links:
            for statement in ("rollback", "select pg_advisory_unlock_all()"):
                # A signal that came late ends at most one of these.
                with contextlib.suppress(TroubleError):
                    link.run(statement)
                link.run(statement)
            link.run("reset deadlock_timeout")
            link.places.clear()
            # A signal may have come between a step's number and its notice.
            link.count_steps()
        return True

    # -- the schedule

    def _go(self, strategy: Strategy) -> None:
        current: int | None = None
        while True:
            runnable = self._runnable()
            bounded = [s.number for s in self._sessions if s.status == "waiting" and s.bounded]
            if not runnable and not bounded:
                if all(s.status == "done" for s in self._sessions):
                    return
                self._break_deadlock()
                continue
            if current not in runnable:
                current = None
            chosen, steps = strategy.choose(runnable, bounded, current)
            session = self._sessions[chosen]
            if steps == "!":
                self._time_out(session, runnable, bounded, current)
                continue
            assert steps is None or isinstance(steps, int)
            before = len(self.outcome.steps)
            self._advance(session, steps, current)
            taken = sum(
                s.session == chosen and s.kind == "step" for s in self.outcome.steps[before:]
            )
            strategy.passed(chosen, taken)
            current = chosen

    def _break_deadlock(self) -> None:
        """Everybody waits: the last to begin is refused, as the server would do it."""
        waiting = [s for s in self._sessions if s.status == "waiting"]
        names = ", ".join(chr(97 + s.number) for s in waiting)
        numbers = {s.number for s in waiting}
        if not self.outcome.scenario.may_deadlock:
            self.outcome.problems.append(f"deadlock of sessions {names}")
            self._end_wait(max(waiting, key=self._last_step), "deadlock")
        elif numbers <= self._victims:
            # The detector of whoever closed the circle finds it.
            links = {s.link.fd: s for s in waiting}
            heard, _, _ = select.select(list(links), [], [], STUCK / 6)
            if heard:
                self._end_wait(links[heard[0]], "deadlock", cancel=False)
            else:
                self.outcome.problems.append(f"sessions {names} wait, and the server sees nothing")
                self._end_wait(max(waiting, key=self._last_step), "deadlock")
        else:
            raise _DeadlockError(numbers, self.outcome.choices)

    def _runnable(self) -> list[int]:
        return [s.number for s in self._sessions if s.status in ("ready", "gate")]

    def _advance(self, session: _Session, steps: int | None, current: int | None) -> None:
        """Let it take up to so many steps; fewer if it must wait, ends, or wakes another."""
        others_wait = any(s.status == "waiting" for s in self._sessions)
        session.budget = 1 if others_wait else steps
        self._let_go(session, current)
        self._settle([session])
        if others_wait:
            self._wake()

    def _let_go(self, session: _Session, current: int | None) -> None:
        link = session.link
        was_at = session.held if session.status == "gate" else 0
        query = []
        if session.budget is not None:
            stop = link.step + session.budget
            query.append(f"pg_advisory_lock({link.number}, {stop})")
            session.held = stop
        else:
            session.held = 0
        if was_at:
            query.append(f"pg_advisory_unlock({link.number}, {was_at})")
        if query:
            # Who stands at a gate goes on by this; who is to begin must find it done.
            (self.control.post if was_at else self.control.value)("select " + ", ".join(query))
        place = session.place if session.status == "gate" else None
        self._note(session, place, current)
        if session.status == "ready":
            self._send(session)
        session.status = "running"

    def _note(self, session: _Session, place: int | None, current: int | None) -> None:
        """Write down a step that begins."""
        where = self.database.code.places[place] if place is not None else None
        session.effects = self._effects(session, where)
        runnable = {*self._runnable(), session.number}
        waiting = [s.number for s in self._sessions if s.status == "waiting" and s.bounded]
        self.outcome.steps.append(
            Step(
                session.number,
                where,
                session.at,
                "step",
                session.effects,
                tuple(sorted(runnable)),
                tuple(waiting),
                current,
                state=len(self.outcome.states) - 1,
            )
        )
        for other in self._sessions:
            if other.call and other is not session:
                other.call.undisturbed = False
        if session.call:
            session.call.step = len(self.outcome.steps) - 1

    def _effects(self, session: _Session, place: Place | None) -> frozenset[Effect]:
        code = self.database.code
        if place is not None:
            effects = set(place.effects)
            if place.releases:
                effects |= {(table, "C") for table in session.touched}
        else:
            op = session.ops[session.at]
            effects = set()
            if op.kind == "call" and op.function in code.entry:
                effects |= code.entry[op.function]
            elif op.kind == "call" and op.function is None:
                effects.add(("@other", "W"))
            elif op.kind == "unlock":
                effects |= {(table, "C") for table in session.kept_locks}
            elif op.kind in ("commit", "rollback", "back"):
                effects |= {(table, "C") for table in session.touched}
        session.touched |= {table for table, how in effects if how in ("W", "S")}
        return frozenset(effects)

    # -- the statements of a session

    def _send(self, session: _Session) -> None:
        op = session.ops[session.at]
        text = op.text
        if op.kind == "call":
            filled = _fill(text, session.values)
            assert filled is not None
            text = filled
            session.call = Call(
                session.number,
                op,
                text,
                len(self.outcome.states) - 1,
                step=len(self.outcome.steps) - 1,
                first_step=len(self.outcome.steps) - 1,
                undisturbed=not any(s.open for s in self._sessions if s is not session),
            )
            session.call.transaction = sum(
                o.kind in ("commit", "rollback") for o in session.ops[: session.at]
            )
            self.outcome.calls.append(session.call)
            session.calls.append(session.call)
        elif op.kind == "commit" and self.outcome.scenario.linger and not session.failed:
            text = "select explorer.linger(); commit"
        if not session.open and op.kind != "unlock":
            text = f"begin; {text}"
            session.open = True
            session.failed = False
            session.touched = set()
        session.link.send(text)

    def _answered(self, session: _Session, answers: list[Answer]) -> None:
        """A statement has ended: stand before the next."""
        op = session.ops[session.at]
        answer = next((a for a in answers if a.sqlstate), answers[-1])
        call, session.call = session.call, None
        if call:
            call.answer = answer
            call.answered = len(self.outcome.states) - 1
            if op.into and answer.rows:
                session.values[op.into] = answer.rows[0]
        if op.kind == "savepoint":
            session.calls.append(Call(session.number, op, "", 0))
        if op.kind == "back":
            session.failed = False
            while session.calls and session.calls[-1].op.kind != "savepoint":
                session.calls.pop()
        if answer.sqlstate:
            session.failed = True
            if op.kind != "call":
                self.outcome.problems.append(f"{op.kind}: {answer.sqlstate} {answer.message}")
        if op.kind in ("commit", "rollback"):
            self._ended(session, answers)
        session.at += 1
        while session.at < len(session.ops):
            following = session.ops[session.at]
            if (
                (session.failed and following.kind in ("call", "savepoint"))
                or (following.kind == "call" and _fill(following.text, session.values) is None)
                or (following.kind == "unlock" and not session.kept_locks)
                or (
                    following.kind == "back"
                    and not any(c.op.kind == "savepoint" for c in session.calls)
                )
            ):
                session.at += 1
            else:
                break
        session.status = "ready" if session.at < len(session.ops) else "done"

    def _ended(self, session: _Session, answers: list[Answer]) -> None:
        committed = answers[-1].tag == "COMMIT"
        for call in session.calls:
            call.ended = len(self.outcome.states)
            call.kept = committed and call.answer is not None and not call.answer.sqlstate
        session.kept_locks = set()
        if committed and len(answers) > 1 and answers[-2].rows:
            kept = answers[-2].rows[0].get("linger")
            if kept and int(kept):
                session.kept_locks = {t for t in session.touched if t.startswith("@")}
        session.calls = []
        session.open = False
        session.failed = False
        states = self.outcome.states
        # Nobody sees anything of what was rolled back.
        states.append(self.control.state() if committed else states[-1])

    # -- waiting

    def _settle(self, sessions: list[_Session]) -> None:
        for link in settle([s.link for s in sessions], self.control, self._came):
            session = self._by_link[link.fd]
            session.status = "waiting"
            self.outcome.steps[self._last_step(session)].waits = True
            # Stop at the very next yield when the wait is over.
            following = link.step + 1
            if session.held != following:
                query = f"pg_advisory_lock({link.number}, {following})"
                if session.held:
                    query += f", pg_advisory_unlock({link.number}, {session.held})"
                self.control.value(f"select {query}")
                session.held = following

    def _last_step(self, session: _Session) -> int:
        for index in range(len(self.outcome.steps) - 1, -1, -1):
            if self.outcome.steps[index].session == session.number:
                return index
        raise TroubleError("no step")

    def _came(self, link: Link, answers: list[Answer] | None) -> bool:
        """Take in what a session said; whether it has come to rest."""
        session = self._by_link[link.fd]
        passed = link.places
        link.places = []
        behind = link.step - len(passed)
        for place in passed:
            behind += 1
            if session.budget is not None:
                session.budget -= 1
            if behind == session.held:
                session.status = "gate"
                session.place = place
                return True
            self._note(session, place, session.number)
        if answers is None:
            return False
        if session.budget is not None:
            session.budget -= 1
        self._answered(session, answers)
        if session.status == "done" or session.budget == 0:
            if session.held:
                self.control.value(f"select pg_advisory_unlock({link.number}, {session.held})")
                session.held = 0
            return True
        # Nobody is to be stopped: go on with the next statement.
        if session.held:
            stop = link.step + (session.budget or 0)
            if stop != session.held:
                self.control.value(
                    f"select pg_advisory_lock({link.number}, {stop}), "
                    f"pg_advisory_unlock({link.number}, {session.held})"
                )
                session.held = stop
        self._note(session, None, session.number)
        self._send(session)
        session.status = "running"
        return False

    def _wake(self) -> None:
        """Those whose wait has ended go on to their next point."""
        first = len(self.outcome.steps)
        while True:
            waiting = [s for s in self._sessions if s.status == "waiting"]
            blocked = self.control.blockers([s.link.pid for s in waiting]) if waiting else {}
            woken = [s for s in waiting if s.link.pid not in blocked]
            if not woken:
                break
            for session in woken:
                self._resume(session, "resume")
            self._settle(woken)
        # Who only went from one wait to the next has taken no step; and who was woken together is
        # written down in one order, whoever was seen first.
        steps = self.outcome.steps
        resumed = {s.session: s for s in steps[first:] if not s.waits}
        steps[first:] = [resumed[number] for number in sorted(resumed)]
        for session in self._sessions:
            if session.call and session.call.step >= len(steps):
                session.call.step = len(steps) - 1

    def _resume(self, session: _Session, kind: str) -> None:
        session.status = "running"
        session.budget = 1
        effects = set(session.effects)
        if kind != "resume":
            effects |= {(table, "C") for table in session.touched}
        last = self.outcome.steps[self._last_step(session)]
        self.outcome.steps.append(
            Step(
                session.number,
                last.place,
                last.op,
                kind,
                frozenset(effects),
                last.runnable,
                (),
                None,
            )
        )
        if session.call:
            session.call.step = len(self.outcome.steps) - 1

    def _time_out(
        self, session: _Session, runnable: list[int], bounded: list[int], current: int | None
    ) -> None:
        """The bound of its wait is over."""
        self._end_wait(session, "timeout", (tuple(runnable), tuple(bounded), current))

    def _end_wait(
        self,
        session: _Session,
        kind: str,
        choice: tuple[tuple[int, ...], tuple[int, ...], int | None] = ((), (), None),
        *,
        cancel: bool = True,
    ) -> None:
        self._resume(session, kind)
        step = self.outcome.steps[-1]
        step.runnable, step.bounded, step.current = choice
        if cancel:
            self.control.value(f"select pg_cancel_backend({session.link.pid})")
        # The signal takes its time: until the session has spoken it only seems to wait still.
        select.select([session.link.fd], [], [], STUCK)
        self._settle([session])
        self._wake()


def _fill(text: str, values: dict[str, Any]) -> str | None:
    """The text with the fields that it names; None where there is no such row."""

    def field(match: re.Match[str]) -> str:
        row = values.get(match[1])
        value = row.get(match[2]) if row else None
        if value is None:
            raise KeyError(match[1])
        return str(value)

    try:
        return re.sub(r"\{(\w+)\.(\w+)\}", field, text)
    except KeyError:
        return None
