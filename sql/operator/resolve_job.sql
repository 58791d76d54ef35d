-- pyjobs.resolve_job: decide a job that was set aside.
--
--   job_id  the job; UNKNOWN
--   status  RETRY: go on with the same run; FAILURE: end it
--   reason  why, for the history
-- Returns     the job's status
-- Raises      PJ003 it is not UNKNOWN, PJ004 no such job, PJ005 bad argument, PJ006
--             transactions in flight are in the way, PJ007 isolation level
-- Locks       to end it, as cancel_job; the job's row; where nothing is left to do, as record_batch
--             for the last. It waits at most 1 second
-- Called by   operators
create or replace function pyjobs.resolve_job(job_id bigint, status pyjobs.job_status, reason text)
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    until constant timestamptz := clock_timestamp() + interval '500 milliseconds';
    j pyjobs_internal.job;
begin
    if resolve_job.status is null or resolve_job.status not in ('RETRY', 'FAILURE') then
        perform pyjobs_internal.raise_invalid('status', 'RETRY or FAILURE',
            resolve_job.status::text);
    end if;
    if coalesce(resolve_job.reason, '') = '' then
        perform pyjobs_internal.raise_invalid('reason', 'a text that says why', resolve_job.reason);
    end if;
    perform pyjobs_internal.require_reason('reason', resolve_job.reason);
    perform pyjobs_internal.require_read_committed();
    -- Items on their way in would come to a job that has ended.
    if resolve_job.status = 'FAILURE'
        and not pyjobs_internal.stop_serving(resolve_job.job_id, until) then
        perform pyjobs_internal.raise_in_the_way(resolve_job.job_id, false);
    end if;
    j := pyjobs_internal.lock_job(resolve_job.job_id, until + interval '400 milliseconds');
    if j.status <> 'UNKNOWN' then
        perform pyjobs_internal.raise_illegal(j.id, resolve_job.status);
    end if;
    perform pyjobs_internal.transition_job(j.id, resolve_job.status, 'resolve_job',
        resolve_job.reason);
    if resolve_job.status = 'RETRY' then
        perform pyjobs_internal.offer_job(j.id);
        perform pyjobs_internal.advance_job(j.id, true, 'resolve_job');
    end if;
    return pyjobs_internal.status_of(j.id);
end
$$;
