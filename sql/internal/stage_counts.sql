-- pyjobs_internal.stage_counts: what the ledger says about one stage of one run. The one place
--   where counts are computed: a stage that is done keeps its result (pyjobs_internal.stage), and
--   audit_job computes it again by other means.
--
--   job_id    the job
--   run       the run of the job
--   stage     the stage's number, from 1
-- Returns     one row, in items: total = pending + leased + succeeded + failed, all 0 where there
--             is no batch; counters: one key for each counter that a recorded batch added to, '{}'
--             where there is none
-- Raises      nothing
-- Locks       nothing. STABLE: it counts what the calling statement sees, so that a reader has one
--             snapshot
-- Called by   complete_stage, end_simple, retry_job; counts_so_far, which counts less
create or replace function pyjobs_internal.stage_counts(job_id bigint, run int, stage smallint)
returns table (total bigint, pending bigint, leased bigint, succeeded bigint, failed bigint,
    counters jsonb)
language sql stable
as $$
    select
        coalesce(sum(b.item_count), 0)::bigint,
        coalesce(sum(b.item_count) filter (where b.state = 'pending'), 0)::bigint,
        coalesce(sum(b.item_count) filter (where b.state = 'leased'), 0)::bigint,
        coalesce(sum(b.item_count - b.failed_count) filter (where b.state = 'recorded'), 0)::bigint,
        coalesce(sum(b.failed_count), 0)::bigint,
        -- A pass of its own over the batches, made only where one of them has any.
        coalesce(case when count(b.counters) > 0 then
            (select jsonb_object_agg(per_counter.key, per_counter.added)
             from (
                 select c.key, trim_scale(sum(c.value::numeric)) as added
                 from pyjobs_internal.batch r
                 cross join lateral jsonb_each_text(r.counters) c
                 where r.job_id = stage_counts.job_id
                   and r.run = stage_counts.run
                   and r.stage = stage_counts.stage
                   and r.state = 'recorded'
                   and r.counters is not null
                 group by c.key
             ) per_counter) end,
            '{}'::jsonb)
    from pyjobs_internal.batch b
    where b.job_id = stage_counts.job_id
      and b.run = stage_counts.run
      and b.stage = stage_counts.stage
$$;
