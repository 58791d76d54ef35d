"""What must be true after a storm, by SQL that shares nothing with the functions.

The ledger is read into temporary tables (``l_...``), beside some that are made of pyjobs' own
(``d_...``). Each check is a query that returns what is wrong.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from tests.storm.ledger import read
from tests.support.rules import broken_rules

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

APPLICATION = """
create schema app;
-- No key: a row that is there twice must be seen, and not refused.
create table app.result (batch_id bigint, lease_epoch bigint, job_id bigint, run int, found int);
create table app.purchase (token text)
"""

_LEDGER = """
create temp table l_record (batch bigint, epoch bigint, job bigint, run int, failed int,
    found int, emitted int);
create temp table l_record_acked (batch bigint, epoch bigint);
create temp table l_record_refused (batch bigint, epoch bigint);
create temp table l_enqueue (token text, jobs int, items int, queue text, key text);
create temp table l_enqueue_acked (token text, ids bigint[], own_row bool);
create temp table l_enqueue_undone (token text);
create temp table l_items (token text, job bigint, items int);
create temp table l_items_acked (token text);
create temp table l_items_undone (token text);
create temp table l_op (kind text, job bigint, token text);
create temp table l_op_acked (kind text, job bigint, token text, answer text, run int, status text);
create temp table l_op_undone (token text);
create temp table l_saw (job bigint, run int, status text, at timestamptz)
"""

_DERIVED = """
create temp table d_recorded as
    select id as batch, lease_epoch as epoch, job_id as job, run, stage, failed_count, counters,
        item_count
    from pyjobs_internal.batch where state = 'recorded';
create temp table d_item as
    select b.id as batch, b.job_id as job, b.run, b.stage, b.emitted, i.value #>> '{}' as token
    from pyjobs_internal.batch b cross join lateral jsonb_array_elements(b.items) i
    where b.items is not null;
create temp table d_emitted as
    select split_part(token, '.', 1)::bigint as by_batch,
        split_part(token, '.', 2)::bigint as by_epoch, job, run, stage, count(*) as items,
        count(distinct token) as different, max(split_part(token, '.', 3)::int) as highest
    from d_item where emitted group by 1, 2, 3, 4, 5;
create temp table d_given as
    select split_part(token, ':', 1) as token, job, count(*) as items,
        count(distinct token) as different
    from d_item where run = 1 and not emitted group by 1, 2;
create temp table d_end as
    select job_id as job, run, to_status::text as status, at, reason
    from pyjobs_internal.history where to_status in ('SUCCESS', 'FAILURE', 'REVOKED')
    union all
    select id, run, status::text, finished_at, finished_reason
    from pyjobs_internal.job where finished_at is not null;
create temp table d_step as
    select job_id as job, run, to_status::text as to_status, by, reason from pyjobs_internal.history
    union all
    select id, run, status::text, finished_by, finished_reason
    from pyjobs_internal.job where finished_at is not null;
create index on d_recorded (batch);
create index on d_item (token);
create index on d_end (job, run);
create index on d_step (reason);
create index on l_record (batch, epoch);
create index on l_op (token);
analyze
"""


@dataclasses.dataclass(frozen=True)
class Check:
    """``wrong`` returns rows of what is wrong; ``of`` counts what was looked at."""

    name: str
    of: str
    wrong: str


CHECKS = (
    Check(
        "every acknowledged record is there, under its lease",
        "select count(*) from (select distinct batch, epoch from l_record_acked) a",
        """
        select distinct a.batch, a.epoch, b.state, b.lease_epoch, b.run
        from l_record_acked a left join pyjobs_internal.batch b on b.id = a.batch
        where b.state is distinct from 'recorded' or b.lease_epoch <> a.epoch
        """,
    ),
    Check(
        "every recorded batch is one that a client meant to record, with its result",
        "select count(*) from d_recorded",
        """
        select d.*, l.failed, l.found, l.emitted
        from d_recorded d left join l_record l on l.batch = d.batch and l.epoch = d.epoch
        where l.batch is null or l.job <> d.job or l.run <> d.run or l.failed <> d.failed_count
            or coalesce(d.counters, '{}') <>
                case when l.found is null then '{}' else jsonb_build_object('found', l.found) end
        """,
    ),
    Check(
        "every recorded batch has exactly one row of the application, in its run",
        "select count(*) from d_recorded",
        """
        select d.batch, d.epoch, d.run, count(r.batch_id) as rows
        from d_recorded d left join app.result r
            on r.batch_id = d.batch and r.lease_epoch = d.epoch and r.job_id = d.job
            and r.run = d.run and r.found = coalesce((d.counters ->> 'found')::int, 0)
        group by 1, 2, 3 having count(r.batch_id) <> 1
        """,
    ),
    Check(
        "no other row of the application is there",
        "select count(*) from app.result",
        """
        select r.* from app.result r
        where not exists (select from d_recorded d
            where d.batch = r.batch_id and d.epoch = r.lease_epoch)
        """,
    ),
    Check(
        "what was refused as stale is not recorded under that lease",
        "select count(*) from l_record_refused",
        """
        select * from l_record_refused f join d_recorded d on d.batch = f.batch
            and d.epoch = f.epoch
        """,
    ),
    Check(
        "what a recorded batch emitted is in the next stage of its run, once",
        "select coalesce(sum(l.emitted), 0) from l_record l "
        "join d_recorded d on d.batch = l.batch and d.epoch = l.epoch",
        """
        select d.batch, d.epoch, l.emitted, e.items from d_recorded d
        join l_record l on l.batch = d.batch and l.epoch = d.epoch
        left join d_emitted e on e.by_batch = d.batch and e.by_epoch = d.epoch
            and e.job = d.job and e.run = d.run and e.stage = d.stage + 1
        where coalesce(e.items, 0) <> l.emitted or coalesce(e.different, 0) <> l.emitted
            or coalesce(e.highest, -1) <> l.emitted - 1
        """,
    ),
    Check(
        "nothing else was emitted",
        "select count(*) from d_item where emitted",
        r"""
        select i.* from d_item i where i.emitted and not exists (
            select from l_record l join d_recorded d on d.batch = l.batch and d.epoch = l.epoch
            where l.batch = split_part(i.token, '.', 1)::bigint
                and l.epoch = split_part(i.token, '.', 2)::bigint
                and split_part(i.token, '.', 3)::int < l.emitted)
        """,
    ),
    Check(
        "every acknowledged job is there",
        "select coalesce(sum(cardinality(ids)), 0) from l_enqueue_acked",
        """
        select l.*, a.ids from l_enqueue l join l_enqueue_acked a using (token)
        where (select count(*) from pyjobs_internal.job j where j.id = any(a.ids)
            and j.queue = l.queue
            and (j.name = l.token or (l.key is not null and j.dedupe_key = l.key))) <> l.jobs
        """,
    ),
    Check(
        "every job is one that a client meant to start, once",
        "select count(*) from pyjobs_internal.job",
        """
        select j.name, count(*), l.jobs from pyjobs_internal.job j
        left join l_enqueue l on l.token = j.name
        group by 1, 3 having l.jobs is null or count(*) <> l.jobs
        """,
    ),
    Check(
        "what was rolled back never was",
        "select (select count(*) from l_enqueue_undone) + (select count(*) from l_items_undone) "
        "+ (select count(*) from l_op_undone)",
        """
        select token from l_enqueue_undone join pyjobs_internal.job j on j.name = token
        union all select token from l_enqueue_undone join app.purchase using (token)
        union all select token from l_items_undone join d_given using (token)
        union all select token from l_op_undone join d_step s on s.reason = token
        """,
    ),
    Check(
        "a job and the application's row beside it are both there, or none",
        "select count(*) from app.purchase",
        """
        select p.token from app.purchase p left join pyjobs_internal.job j on j.name = p.token
        where j.id is null
        union all
        select a.token from l_enqueue_acked a where a.own_row
            and (select count(*) from app.purchase p where p.token = a.token) <> 1
        """,
    ),
    Check(
        "every item that was given is there once, and no other",
        "select coalesce(sum(items), 0) from d_given",
        """
        select * from (
            select e.token, e.items as meant, coalesce(g.items, 0) as there,
                coalesce(g.different, 0) as different,
                exists (select from pyjobs_internal.job j where j.name = e.token) as must
            from l_enqueue e left join d_given g using (token) where e.items is not null
            union all
            select i.token, i.items, coalesce(g.items, 0), coalesce(g.different, 0),
                exists (select from l_items_acked a where a.token = i.token)
            from l_items i left join d_given g on g.token = i.token and g.job = i.job
        ) x
        where there <> different or there not in (0, meant) or (must and there <> meant)
        union all
        select token, 0, items, different, false from d_given
        where token not in (select token from l_enqueue union all select token from l_items)
        """,
    ),
    Check(
        "no item is in a run twice",
        "select count(*) from d_item",
        "select job, run, token, count(*) from d_item group by 1, 2, 3 having count(*) > 1",
    ),
    Check(
        "every run that is over has one end, and no other has",
        "select coalesce(sum(run), 0) from pyjobs_internal.job",
        """
        select j.id, r.run, j.status, count(e.job) from pyjobs_internal.job j
        cross join lateral generate_series(1, j.run) r (run)
        left join d_end e on e.job = j.id and e.run = r.run
        group by 1, 2, 3
        having count(e.job) <>
            case when r.run < j.run or j.status in ('SUCCESS', 'FAILURE', 'REVOKED')
                then 1 else 0 end
        """,
    ),
    Check(
        "a final state that somebody saw is the one that stands",
        "select count(*) from l_saw where status in ('SUCCESS', 'FAILURE', 'REVOKED')",
        """
        select s.*, e.status as stands, e.at as since from l_saw s
        left join d_end e on e.job = s.job and e.run = s.run
        where s.status in ('SUCCESS', 'FAILURE', 'REVOKED')
            and (e.status is distinct from s.status or s.at <> e.at)
        """,
    ),
    Check(
        "what was seen being cancelled was revoked",
        "select count(*) from l_saw where status = 'CANCELING'",
        """
        select s.*, e.status as stands from l_saw s
        left join d_end e on e.job = s.job and e.run = s.run
        where s.status = 'CANCELING' and e.status is distinct from 'REVOKED'
        """,
    ),
    Check(
        "after a cancel the history of a run knows nothing but REVOKED",
        "select count(*) from pyjobs_internal.history where to_status = 'CANCELING'",
        """
        select c.job_id, c.run, s.status from pyjobs_internal.history c
        join d_end s on s.job = c.job_id and s.run = c.run
        where c.to_status = 'CANCELING' and s.status <> 'REVOKED'
        """,
    ),
    Check(
        "every acknowledged transition of an operator stands in the history once",
        "select count(*) from l_op_acked where kind in ('quarantine', 'resolve') "
        "or (kind = 'force' and answer = 'true')",
        """
        select a.*, n.times from l_op_acked a
        cross join lateral (select count(*) as times from d_step s where s.reason = a.token
            and s.job = a.job) n
        where (kind in ('quarantine', 'resolve') or (kind = 'force' and answer = 'true'))
            and n.times <> 1
        """,
    ),
    Check(
        "every acknowledged retry began its run, once",
        "select count(*) from l_op_acked where kind = 'retry'",
        """
        select a.*, n.times from l_op_acked a
        cross join lateral (select count(*) as times from pyjobs_internal.history h
            where h.job_id = a.job and h.run = a.run and h.by = 'retry_job'
                and h.to_status = 'RETRY') n
        where kind = 'retry' and n.times <> 1
        """,
    ),
    Check(
        "no run began without a retry",
        "select coalesce(sum(run - 1), 0) from pyjobs_internal.job",
        """
        select j.id, j.run, n.times, m.times as meant from pyjobs_internal.job j
        left join (select job_id, count(*) as times from pyjobs_internal.history
            where by = 'retry_job' and to_status = 'RETRY' group by 1) n on n.job_id = j.id
        left join (select job, count(*) as times from l_op where kind = 'retry' group by 1) m
            on m.job = j.id
        where coalesce(n.times, 0) <> j.run - 1 or coalesce(m.times, 0) < j.run - 1
        """,
    ),
    Check(
        "nothing had to be revoked as stale",
        "select count(*) from d_end where status = 'REVOKED'",
        "select * from d_end where reason like 'stale: %'",
    ),
    Check(
        "the totals of every stage that is done, of all runs, are those of its batches",
        "select count(*) from pyjobs_internal.stage where done",
        """
        select s.job_id, s.run, s.no, s.total, s.succeeded, s.failed, s.counters, b.*
        from pyjobs_internal.stage s
        cross join lateral (
            select coalesce(sum(item_count), 0) as items,
                coalesce(sum(case state when 'failed' then item_count else failed_count end), 0)
                    as bad,
                coalesce(sum((counters ->> 'found')::bigint), 0) as found,
                count(*) filter (where state not in ('recorded', 'failed')) as open
            from pyjobs_internal.batch b
            where b.job_id = s.job_id and b.run = s.run and b.stage = s.no
        ) b
        where s.done and (s.total <> b.items or s.failed <> b.bad or b.open > 0
            or s.succeeded <> b.items - b.bad
            or coalesce((s.counters ->> 'found')::bigint, 0) <> b.found)
        """,
    ),
    Check(
        "the counters of every such stage are the sums of the application's rows",
        "select count(*) from pyjobs_internal.stage where done",
        """
        select s.job_id, s.run, s.no, s.counters, sum(r.found)
        from pyjobs_internal.stage s
        left join pyjobs_internal.batch b on b.job_id = s.job_id and b.run = s.run
            and b.stage = s.no
        left join app.result r on r.batch_id = b.id
        where s.done
        group by s.job_id, s.run, s.no, s.counters
        having coalesce(sum(r.found), 0) <> coalesce((s.counters ->> 'found')::bigint, 0)
        """,
    ),
)

# Why a job is not final that nobody works: what an operator or a producer left it in.
UNFINISHED = """
select j.id, j.status, case
    when j.status = 'CREATED' then 'held'
    when j.status = 'UNKNOWN' then 'set aside'
    when j.paused or coalesce(q.paused, false) then 'paused'
    when not j.sealed then 'unsealed'
    end as why
from pyjobs_internal.job j left join pyjobs_internal.queue q on q.name = j.queue
where j.finished_at is null order by j.id
"""


@dataclasses.dataclass
class Verdict:
    """What was counted, what was looked at, what is wrong."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    checked: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, looked_at: int, wrong: list[str]) -> None:
        """The outcome of a check; of many wrong ones the first few are shown."""
        before = self.checked.get(name, (0, 0))
        self.checked[name] = (before[0] + looked_at, before[1] + len(wrong))
        self.wrong += [f"{name}: {text}" for text in wrong[:5]]
        if len(wrong) > 5:
            self.wrong.append(f"{name}: and {len(wrong) - 5} more")


def explained(conn: psycopg.Connection[Any], verdict: Verdict) -> None:
    """Every job is final, or the tables say why not, and so does explain_job."""
    with conn.cursor(row_factory=dict_row) as cursor:
        jobs = cursor.execute("select count(*) as n from pyjobs_internal.job").fetchall()[0]["n"]
        left = cursor.execute(UNFINISHED).fetchall()
        wrong = []
        for row in left:
            told = cursor.execute(
                "select finding from pyjobs.explain_job(%s)", [row["id"]]
            ).fetchall()
            findings = ", ".join(x["finding"] for x in told)
            if row["why"] is None or not told:
                wrong.append(f"job {row['id']} is {row['status']}; explain_job: {findings}")
            else:
                name = f"left when the storm ended: {row['why']}"
                verdict.counts[name] = verdict.counts.get(name, 0) + 1
    verdict.counts["jobs when the storm ended"] = jobs
    verdict.add("at rest every job is final, or held, set aside, paused or unsealed", jobs, wrong)


def judge(conn: psycopg.Connection[Any], ledger: Path, verdict: Verdict) -> None:
    """All that can be said when every job has been worked to its end; ``conn`` in autocommit."""
    compare(conn, ledger, verdict)
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(
            "select status::text, count(*) from pyjobs.job group by 1 order by 1"
        ).fetchall():
            verdict.counts[f"jobs that ended {row['status']}"] = row["count"]
        left = cursor.execute("select id, status::text from pyjobs.job where finished_at is null")
        unfinished = [str(row) for row in left.fetchall()]
    jobs = verdict.counts.get("jobs when the storm ended", 0)
    verdict.add("let go and worked, every job is final", jobs, unfinished)
    audit = conn.execute("select a::text from pyjobs.audit_job() a").fetchall()
    verdict.add("audit_job() finds nothing", jobs, [row[0] for row in audit])
    verdict.add("every rule, recomputed from the tables", jobs, broken_rules(conn))


def compare(conn: psycopg.Connection[Any], ledger: Path, verdict: Verdict) -> None:
    """The ledger, the application's rows and pyjobs' tables, with one another."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(_LEDGER)
        verdict.wrong += _load(cursor, ledger, verdict.counts)
        cursor.execute(_DERIVED)
        for check in CHECKS:
            (looked_at,) = cursor.execute(check.of.encode()).fetchall()[0].values()
            rows = cursor.execute(check.wrong.encode()).fetchall()
            verdict.add(check.name, int(looked_at), [str(row) for row in rows])


_COLUMNS = {
    ("intend", "record"): ("l_record", "batch epoch job run failed found emitted"),
    ("acked", "record"): ("l_record_acked", "batch epoch"),
    ("refused", "record"): ("l_record_refused", "batch epoch"),
    ("intend", "enqueue"): ("l_enqueue", "token jobs items queue key"),
    ("acked", "enqueue"): ("l_enqueue_acked", "token ids row"),
    ("undone", "enqueue"): ("l_enqueue_undone", "token"),
    ("intend", "items"): ("l_items", "token job items"),
    ("acked", "items"): ("l_items_acked", "token"),
    ("undone", "items"): ("l_items_undone", "token"),
    ("intend", "op"): ("l_op", "kind job token"),
    ("acked", "op"): ("l_op_acked", "kind job token answer run status"),
    ("undone", "op"): ("l_op_undone", "token"),
    ("saw", "status"): ("l_saw", "job run status at"),
}


def _load(cursor: Any, ledger: Path, counts: dict[str, int]) -> list[str]:
    """Read the ledger into the temporary tables; what its writers found wrong."""
    tables: dict[str, dict[tuple[Any, ...], None]] = {}
    trouble = []
    tally: Counter[str] = Counter()
    for actor, what, kind, fields in read(ledger):
        tally["lines in the ledger"] += 1
        if what == "trouble":
            trouble.append(f"{actor}: {kind}")
        elif what == "count":
            tally[kind] += 1
        elif (what, kind) in _COLUMNS:
            table, columns = _COLUMNS[what, kind]
            # What is posted again under the same lease is the same line again.
            row = tuple(_plain(fields.get(name)) for name in columns.split())
            tables.setdefault(table, {})[row] = None
            if what == "acked":
                tally[f"acknowledged: {fields.get('kind', kind)}"] += 1
        elif what == "acked":
            tally[f"acknowledged: {kind}"] += 1
    for table, rows in tables.items():
        with cursor.copy(f"copy {table} from stdin") as copy:
            for row in rows:
                copy.write_row(row)
    counts.update(sorted(tally.items()))
    return trouble


def _plain(value: Any) -> Any:
    """A list as an array's text."""
    return f"{{{','.join(map(str, value))}}}" if isinstance(value, list) else value
