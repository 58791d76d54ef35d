"""Sessions that take their steps in a chosen order, and points at which they can be stopped."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.support.calls import Calls
from tests.support.waiting import pid_of, wait_for_lock, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    import psycopg

    from tests.support.calls import Row
    from tests.support.waiting import Background

# A call that waits for nobody in particular ends within this, or the test fails.
SOON = 30


class Session(Calls):
    """One session, whose calls can run in the background while the test goes on."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        background: Background,
        observer: psycopg.Connection[Any],
    ) -> None:
        super().__init__(conn)
        self._background = background
        self._observer = observer

    @property
    def pid(self) -> int:
        return pid_of(self.conn)

    def begin(self) -> Session:
        self.do("begin")
        return self

    def commit(self) -> None:
        self.do("commit")

    def rollback(self) -> None:
        self.do("rollback")

    def start(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        """Make a call of this session in the background."""
        return self._background(call, *arguments, **options)

    def waits_for(self, other: Session | psycopg.Connection[Any] | None = None) -> list[int]:
        """Until this session really waits for a lock of the other's."""
        blocker = other.conn if isinstance(other, Session) else other
        return wait_for_lock(self._observer, self.conn, blocker)

    def waits_or_ends(self, call: Future[Any]) -> bool:
        """Until the call either has ended or waits for a lock; whether it waits."""

        def found() -> str | None:
            if call.done():
                return "ended"
            # Other sessions only: the server's own processes are soon out of the way.
            row = self._observer.execute(
                "select from pg_stat_activity a where a.pid = any (pg_blocking_pids(%s)) "
                "and a.backend_type = 'client backend'",
                [self.pid],
            ).fetchone()
            return "waits" if row is not None else None

        state = wait_until(found, f"session {self.pid} waits for a lock or has ended its call")
        return state == "waits"

    def cancel(self, job_id: int, grace: str = "30 seconds", reason: str | None = None) -> str:
        return self.value("select pyjobs.cancel_job(%s, %s, %s)", job_id, reason, grace)

    def finalize(self, job_id: int, status: str | None = None) -> Row:
        return self.row("select * from pyjobs.finalize_job(%s, %s)", job_id, status)

    def extend(self, batch: Row, lease: str = "60 seconds") -> Row:
        return self.row(
            "select * from pyjobs.extend_lease(%s, %s, %s)",
            batch["batch_id"],
            batch["lease_epoch"],
            lease,
        )

    def release(self, batch: Row, error: str | None = None) -> str:
        return self.value(
            "select pyjobs.release_batch(%s, %s, %s)",
            batch["batch_id"],
            batch["lease_epoch"],
            error,
        )

    def record_many(self, *batches: Row) -> list[str]:
        """Outcomes, in the order in which the batches are given."""
        return [
            row["outcome"]
            for row in self.rows(
                "select * from pyjobs.record_batches(%s::bigint[], %s::bigint[])",
                [b["batch_id"] for b in batches],
                [b["lease_epoch"] for b in batches],
            )
        ]

    def reap(self, stale_after: str | None = None, *, dry_run: bool = False) -> list[Row]:
        return self.rows("select * from pyjobs.reap(%s, %s)", stale_after, dry_run)

    def retry(self, job_id: int, *, failed_only: bool = False) -> str:
        return self.value("select pyjobs.retry_job(%s, %s)", job_id, failed_only)

    def seal(self, job_id: int) -> str:
        return self.value("select pyjobs.seal_job(%s)", job_id)

    def add(self, job_id: int, items: list[Any], stage: str | None = None) -> str:
        import json

        return self.value("select pyjobs.add_items(%s, %s, %s)", job_id, json.dumps(items), stage)

    def quarantine(self, job_id: int) -> str:
        return self.value("select pyjobs.quarantine_job(%s, 'looks wrong')", job_id)

    def resolve(self, job_id: int, status: str = "RETRY") -> str:
        return self.value("select pyjobs.resolve_job(%s, %s, 'looked at')", job_id, status)

    def ends_of(self, job_id: int) -> list[str]:
        """The final states in a job's history."""
        return [to for _, to in self.steps(job_id) if to in ("SUCCESS", "FAILURE", "REVOKED")]


class Stops:
    """Makes functions of pyjobs wait at their first statement, for the sessions that ask for it.

    The test's database only. A session that is stopped really waits for a lock: of the session
    that this object holds. A session is known by its application_name, which a pooler hands on.
    """

    def __init__(self, owner: psycopg.Connection[Any], holder: psycopg.Connection[Any]) -> None:
        self._owner = owner
        self.holder = holder
        owner.execute(
            """
            create function pyjobs_internal.test_stop(name text) returns void
            language plpgsql set search_path = pg_catalog, pg_temp as $$
            declare
                key constant bigint :=
                    hashtextextended(name || current_setting('application_name'), 99);
                timeout constant text := current_setting('lock_timeout');
            begin
                perform set_config('lock_timeout', '0', true);
                perform pg_advisory_lock_shared(key);
                perform pg_advisory_unlock_shared(key);
                perform set_config('lock_timeout', timeout, true);
            end
            $$"""
        )

    def before(self, function: str, session: Session) -> None:
        """That session will stop where it next calls this internal function."""
        row = self._owner.execute(
            "select pg_get_functiondef(p.oid), l.lanname "
            "from pg_proc p join pg_language l on l.oid = p.prolang "
            "where p.pronamespace in ('pyjobs_internal'::regnamespace, 'pyjobs'::regnamespace) "
            "and p.proname = %s",
            [function],
        ).fetchone()
        assert row is not None, f"no function {function}"
        text, language = row
        if "test_stop" not in text:
            stop = f"perform pyjobs_internal.test_stop('{function}');"
            if language == "sql":
                head, body = text.split("AS $function$", 1)
                rows = "RETURNS SETOF" in head or "RETURNS TABLE" in head
                answer = "return query" if rows else "return"
                text = re.sub(r"LANGUAGE sql.*", "LANGUAGE plpgsql", head) + (
                    f"AS $function$ begin {stop} "
                    f"{answer} ({body.rsplit('$function$', 1)[0].strip()}); end $function$"
                )
            else:
                text, times = re.subn(
                    r"^begin$", f"begin\n    {stop}", text, count=1, flags=re.MULTILINE
                )
                assert times == 1, f"{function} has no body to stop in"
            self._owner.execute(text.encode())
        self._lock("lock", function, session)

    def go(self, function: str, session: Session) -> None:
        """Let the stopped session go on, and stop there no more."""
        self._lock("unlock", function, session)

    def _lock(self, what: str, function: str, session: Session) -> None:
        self.holder.execute(
            f"select pg_advisory_{what}(hashtextextended(%s, 99))".encode(),
            [f"{function}{session.conn.info.get_parameters()['application_name']}"],
        )


def make_operators_patient(owner: psycopg.Connection[Any]) -> None:
    """Let operators' calls wait far longer than a second, in the test's database only.

    So that a test which looks for what they do after a wait is decided by the order of its steps,
    and never by how fast the machine is.
    """
    found = owner.execute(
        """
        select pg_get_functiondef(p.oid) from pg_proc p
        where p.pronamespace in ('pyjobs_internal'::regnamespace, 'pyjobs'::regnamespace)
            and p.prokind = 'f'
            and (p.prosrc like '% milliseconds%' or p.proconfig::text like '%lock_timeout%')"""
    ).fetchall()
    assert len(found) > 5
    for (text,) in found:
        changed = re.sub(r"(interval ')(\d+) milliseconds'", r"\1\2 seconds'", text)
        changed = changed.replace("SET lock_timeout TO '500ms'", "SET lock_timeout TO '500s'")
        owner.execute(changed.encode())
