-- pyjobs.job_progress: how far a job is. One statement, so one snapshot: status and counts cannot
--   disagree, and are read from the rows that the status itself is made from.
--
--   job_id    the job
-- Returns     of the present run: {"summary": {"status", "progress", "rate", "seconds_left"},
--              "stages": [{"key", "status", "progress", "total", "pending", "leased", "processed",
--                          "failed", "remaining", "counters": {..}}, ..],
--              "errors": [{"stage", "item", "error"}, ..], "more_errors"}
--             Counts are items; total = pending + leased + processed, processed = succeeded +
--             failed, remaining = pending + leased. progress is from 0 to 1, to 4 places, and 1
--             only where nothing remains; the job's is the mean of its stages'. A stage is waiting
--             (nothing of it has begun), running or done. rate is items a second since the run's
--             first claim, seconds_left is what remains at that rate, 0 for a final job; both null
--             where unknown. errors are the first 10 by stage and batch, more_errors counts the
--             others; an item of more than 4,000 characters is told by its beginning or its kind
--             and size, an error by its first 10,000 characters. Where the run repeats only what
--             had failed, each stage has also "carried": {"succeeded", "counters"}, what earlier
--             runs had done of it, which is not in the other numbers.
-- Raises      PJ004 no such job, PJ005 job_id is null
-- Locks       nothing
-- Called by   all four roles
create or replace function pyjobs.job_progress(job_id bigint)
returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
    set jit = off
as $$
declare
    document jsonb;
begin
    with job as materialized (
        select v.id, v.status, v.run, v.params, v.started_at, v.finished_at,
            j.full_run < j.run as repeats
        from pyjobs.job v
        join pyjobs_internal.job j on j.id = v.id
        where v.id = job_progress.job_id
    ),
    -- A stage that is done has its counts written down; the others are counted.
    counted as (
        select s.no, s.key, s.done, s.open, s.carried_succeeded, s.carried_counters, c.*
        from job
        join pyjobs_internal.stage s on s.job_id = job.id and s.run = job.run
        cross join lateral (
            select s.total, 0::bigint as pending, 0::bigint as leased, s.succeeded, s.failed,
                s.counters
            where s.done
            union all
            select c.total, c.pending, c.leased, c.succeeded, c.failed, c.counters
            from pyjobs_internal.counts_so_far(job.id, job.run, s.no) c
            where not s.done
        ) c
    ),
    stages as (
        select
            c.*,
            c.succeeded + c.failed as processed,
            case
                when c.total = 0 then c.done::int::numeric
                else (c.succeeded + c.failed)::numeric / c.total
            end as progress,
            case
                when c.done then 'done'
                when c.open and c.leased + c.succeeded + c.failed > 0 then 'running'
                else 'waiting'
            end as status
        from counted c
    ),
    summed as (
        select
            coalesce(avg(s.progress), 0) as progress,
            sum(s.processed) as processed,
            sum(s.total - s.processed) as remaining,
            sum(s.failed)::bigint as failed,
            jsonb_agg(
                jsonb_build_object(
                    'key', s.key,
                    'status', s.status,
                    'progress', case when s.progress < 1
                                     then least(round(s.progress, 4), 0.9999) else 1 end,
                    'total', s.total,
                    'pending', s.pending,
                    'leased', s.leased,
                    'processed', s.processed,
                    'failed', s.failed,
                    'remaining', s.total - s.processed,
                    'counters', s.counters)
                || case
                    when job.repeats then jsonb_build_object(
                        'carried', jsonb_build_object(
                            'succeeded', s.carried_succeeded,
                            'counters', s.carried_counters))
                    else '{}'
                end
                order by s.no) as stages
        from stages s
        cross join job
    ),
    -- Ten batches with failures have at least ten failed items.
    failing as (
        select b.id, b.stage, s.key, b.state, b.item_count, b.error, b.failed,
            coalesce(b.items, jsonb_build_array(job.params)) as items
        from job
        join pyjobs_internal.batch b on b.job_id = job.id and b.run = job.run
        join pyjobs_internal.stage s on s.job_id = b.job_id and s.run = b.run and s.no = b.stage
        where b.failed_count > 0
        order by b.job_id, b.run, b.stage, b.id
        limit 10
    ),
    failures as (
        select f.id, f.stage, f.key, e.index, f.items -> e.index as item, e.error
        from failing f
        cross join lateral (
            select (r.value ->> 'index')::numeric::int as index, r.value ->> 'error' as error
            from jsonb_array_elements(f.failed) r
            where f.state = 'recorded'
            union all
            -- Its attempts are used up: all its items failed, for the same reason.
            select i, f.error
            from generate_series(0, f.item_count - 1) i
            where f.state = 'failed'
        ) e
        order by f.stage, f.id, e.index
        limit 10
    ),
    errors as (
        select
            count(*) as shown,
            jsonb_agg(
                jsonb_build_object(
                    'stage', f.key,
                    -- A document that is asked for every second stays small, and flat enough for
                    -- every parser.
                    'item', case
                        when pg_column_size(f.item) > 6000 or octet_length(f.item::text) > 4000
                        then to_jsonb(pyjobs_internal.say_json(f.item))
                        else f.item
                    end,
                    'error', coalesce(left(f.error, 10000), 'all attempts were used up'))
                order by f.stage, f.id, f.index) as list
        from failures f
    ),
    pace as (
        select case
            when summed.processed > 0 and elapsed.seconds > 0
            then summed.processed / elapsed.seconds
        end as rate
        from summed
        cross join job
        cross join lateral (
            select extract(epoch from
                coalesce(job.finished_at, pyjobs_internal.clock()) - job.started_at) as seconds
        ) elapsed
    )
    select jsonb_build_object(
        'summary', jsonb_build_object(
            'status', job.status,
            'progress', case when summed.progress < 1
                             then least(round(summed.progress, 4), 0.9999) else 1 end,
            'rate', round(pace.rate, 4),
            'seconds_left', case when job.finished_at is not null then 0
                                 else ceil(summed.remaining / pace.rate) end),
        'stages', summed.stages,
        'errors', coalesce(errors.list, '[]'),
        'more_errors', summed.failed - errors.shown)
    into document
    from job
    cross join summed
    cross join errors
    cross join pace;

    if document is null then
        perform pyjobs_internal.raise_no_job(job_progress.job_id);
    end if;
    return document;
end
$$;
