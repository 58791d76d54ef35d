-- pyjobs.retry_job: start the next run of a final job, sealed and not paused.
--   The run has rows of its own: nothing of an earlier one can reach them.
--
--   job_id       the job; SUCCESS, FAILURE or REVOKED
--   failed_only  false: all that producers gave it, from the first stage; true: the items that
--                failed or were never finished, each in its own stage; what was done is carried
--                over beside
-- Returns     the job's status: RETRY; or final, where there is nothing to do
-- Raises      PJ003 it is not final, PJ004 no such job, PJ005 null, PJ006 no items failed
--             (failed_only), or another live job has its dedupe_key, or transactions in flight are
--             in the way, PJ007 isolation level
-- Locks       the intake lock of an unsealed job, the job's row; it waits at most 1 second; as
--             move_mark
-- Called by   operators
create or replace function pyjobs.retry_job(job_id bigint, failed_only boolean default false)
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    until constant timestamptz := clock_timestamp() + interval '500 milliseconds';
    j pyjobs_internal.job;
    next_run int;
    made bigint;
begin
    if retry_job.failed_only is null then
        perform pyjobs_internal.raise_invalid('failed_only', 'true or false', null);
    end if;
    perform pyjobs_internal.require_read_committed();
    -- Items on their way into the old run would be lost to the new one.
    if not pyjobs_internal.stop_serving(retry_job.job_id, until) then
        perform pyjobs_internal.raise_in_the_way(retry_job.job_id, false);
    end if;
    j := pyjobs_internal.lock_job(retry_job.job_id, until + interval '400 milliseconds');
    if j.finished_at is null then
        perform pyjobs_internal.raise_illegal(j.id, 'RETRY');
    end if;
    next_run := j.run + 1;

    -- The end of the run goes to the history, where the job's row held it so far.
    insert into pyjobs_internal.history (job_id, at, run, from_status, to_status, session_role, by,
        reason)
    values (j.id, j.finished_at, j.run, j.finished_from, j.status, j.finished_role, j.finished_by,
        j.finished_reason),
           (j.id, pyjobs_internal.clock(), next_run, j.status, 'RETRY', session_user, 'retry_job',
            case when retry_job.failed_only then 'failed and unfinished items'
                else 'all items' end);

    begin
        perform pyjobs_internal.bound_wait(until + interval '400 milliseconds');
        update pyjobs_internal.job o
        set run = next_run, status = 'RETRY', era = o.era + 1, sealed = true, paused = false,
            run_since = pyjobs_internal.clock(), finished_at = null, finished_by = null,
                finished_role = null,
            finished_from = null, finished_reason = null, cancel_settled = true,
            full_run = case when retry_job.failed_only then o.full_run else next_run end
        where o.id = j.id;
    exception
        when unique_violation then
            raise exception 'job % cannot be retried: another live job has its dedupe key', j.id
                using errcode = 'PJ006',
                      detail = (select format('Job %s of queue %s has the key %s.', o.id, o.queue,
                          o.dedupe_key)
                                from pyjobs_internal.job o
                                where o.queue = j.queue and o.dedupe_key = j.dedupe_key
                                    and o.finished_at is null),
                      hint = 'Wait for that job, or cancel it. Nothing was changed.';
        when lock_not_available then
            perform pyjobs_internal.raise_in_the_way(j.id, true);
    end;

    insert into pyjobs_internal.stage (job_id, run, no, key, barrier, open, carried_succeeded,
        carried_counters)
    select s.job_id, next_run, s.no, s.key, s.barrier, s.no = 1 or not s.barrier,
           case when retry_job.failed_only then s.carried_succeeded + c.succeeded else 0 end,
           case when retry_job.failed_only then pyjobs_internal.add_counters(s.carried_counters,
               c.counters) else '{}' end
    from pyjobs_internal.stage s
    cross join lateral pyjobs_internal.stage_counts(s.job_id, s.run, s.no) c
    where s.job_id = j.id and s.run = j.run;

    if retry_job.failed_only then
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted, items)
        select n.id, n.id, j.id, next_run, n.stage, n.item_count, n.emitted, n.items
        from (
            select nextval('pyjobs_internal.batch_id') as id, o.*
            from (
                -- The items of a batch that failed one by one; all of one that was never finished.
                select b.stage, b.emitted, f.item_count, f.items
                from pyjobs_internal.batch b
                cross join lateral (
                    select count(*)::int as item_count,
                           jsonb_agg(coalesce(b.items,
                               jsonb_build_array(j.params)) -> (e.entry ->> 'index')::numeric::int
                                     order by (e.entry ->> 'index')::numeric::int) as items
                    from jsonb_array_elements(b.failed) e (entry)) f
                where b.job_id = j.id and b.run = j.run and b.state = 'recorded'
                    and b.failed_count > 0
                union all
                select b.stage, b.emitted, b.item_count, b.items
                from pyjobs_internal.batch b
                where b.job_id = j.id and b.run = j.run and b.state in ('pending', 'failed')
                order by stage) o) n;
    else
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted, items)
        select n.id, n.id, j.id, next_run, n.stage, n.item_count, false, n.items
        from (
            select nextval('pyjobs_internal.batch_id') as id, o.*
            from (
                select b.stage, b.item_count, b.items
                from pyjobs_internal.batch b
                where b.job_id = j.id and b.run = j.full_run and not b.emitted
                order by b.stage, b.id) o) n;
    end if;
    get diagnostics made = row_count;
    if made = 0 and retry_job.failed_only then
        raise exception 'job % has no items that failed or were never finished', j.id
            using errcode = 'PJ006',
                  detail = format('It is %s, run %s.', j.status, j.run),
                  hint = format('Retry all of it: select pyjobs.retry_job(%s). Nothing was '
                                'changed.', j.id);
    end if;

    if made >= 512 then
        perform pyjobs_internal.move_mark(s.job_id, s.run, s.no, false)
        from pyjobs_internal.stage s
        where s.job_id = j.id and s.run = next_run;
    end if;

    perform pyjobs_internal.offer_job(j.id);
    perform pyjobs_internal.advance_job(j.id, true, 'retry_job');
    return pyjobs_internal.status_of(j.id);
end
$$;
