-- pyjobs_internal.timeline: every transition of every job, in order.
--   History holds most of them. Three kinds stand where they were written without touching a hot
--   row: the creation and the end of the present run with the job, the first claim in job_start.
--   The order is that of the chain (creation, history by id, end) and not of the clock. A first
--   claim belongs where a PENDING or RETRY was left as STARTED, or still stands. (A claim in flight
--   at a cancel that did not wait for it leaves a row in job_start that was never seen as STARTED.)
--   seq is the place within the job, from 1, without gaps.
-- Read by     job_history, explain_job, audit_job
create or replace view pyjobs_internal.timeline as
with written as not materialized (
    -- The creation; its status is what the next transition says it left.
    select
        j.id as job_id, 1 as run, j.created_at as at,
        null::pyjobs.job_status as from_status,
        case
            when coalesce(
                (select h.from_status from pyjobs_internal.history h
                 where h.job_id = j.id order by h.id limit 1),
                j.finished_from, j.status) = 'CREATED'
            then 'CREATED'::pyjobs.job_status
            else 'PENDING'::pyjobs.job_status
        end as to_status,
        j.created_by as session_role, 'enqueue_job' as by, null::text as reason,
        0::bigint as place
    from pyjobs_internal.job j
    union all
    select h.job_id, h.run, h.at, h.from_status, h.to_status, h.session_role, h.by, h.reason, h.id
    from pyjobs_internal.history h
    union all
    select
        j.id, j.run, j.finished_at, j.finished_from, j.status, j.finished_role, j.finished_by,
        j.finished_reason, 9223372036854775807
    from pyjobs_internal.job j
    where j.finished_at is not null
),
chained as not materialized (
    select
        w.*,
        lead(w.from_status) over (partition by w.job_id order by w.place) as left_as,
        lead(w.place) over (partition by w.job_id order by w.place) is null as latest
    from written w
),
claimed as (
    -- The nth first claim of a run, as seen, is that of the run's nth era with a claim.
    select
        c.job_id, c.run, c.to_status, c.place,
        row_number() over (partition by c.job_id, c.run order by c.place) as nth
    from chained c
    where c.to_status in ('PENDING', 'RETRY') and (c.left_as = 'STARTED' or c.latest)
),
first_claim as (
    select
        f.*, row_number() over (partition by f.job_id, f.run order by f.era) as nth
    from (
        select distinct on (s.job_id, s.run, s.era)
            s.job_id, s.run, s.era, s.at, s.session_role, s.worker
        from pyjobs_internal.job_start s
        order by s.job_id, s.run, s.era, s.at
    ) f
),
whole as (
    select c.job_id, c.run, c.at, c.from_status, c.to_status, c.session_role, c.by, c.reason,
        c.place, 0 as after
    from chained c
    union all
    select c.job_id, c.run, f.at, c.to_status, 'STARTED', f.session_role, f.worker,
        'the first claim', c.place, 1
    from claimed c
    join first_claim f on f.job_id = c.job_id and f.run = c.run and f.nth = c.nth
)
select
    w.job_id, w.run, w.at, w.from_status, w.to_status, w.session_role, w.by, w.reason,
    row_number() over (partition by w.job_id order by w.place, w.after) as seq
from whole w;
