-- pyjobs.quarantine_job: set a job aside: not served and not ended until resolve_job. Its leases
-- are fenced.
--
--   job_id  the job; PENDING, STARTED or RETRY
--   reason  why, for the history
-- Returns     the job's status
-- Raises      PJ003 from another state, PJ004 no such job, PJ005 bad argument, PJ006 transactions
--             in flight are in the way, PJ007 isolation level
-- Locks       as cancel_job; it waits at most 1 second
-- Called by   operators
create or replace function pyjobs.quarantine_job(job_id bigint, reason text)
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    until constant timestamptz := clock_timestamp() + interval '500 milliseconds';
    j pyjobs_internal.job;
    stopped boolean;
begin
    if coalesce(quarantine_job.reason, '') = '' then
        perform pyjobs_internal.raise_invalid('reason', 'a text that says why',
            quarantine_job.reason);
    end if;
    perform pyjobs_internal.require_reason('reason', quarantine_job.reason);
    perform pyjobs_internal.require_read_committed();
    j := pyjobs_internal.read_job(quarantine_job.job_id);
    if exists (select from pyjobs_internal.job_state s where s.status = j.status
        and s.claimable) then
        stopped := pyjobs_internal.stop_serving(j.id, until);
        -- While we waited its run may have ended, and another begun.
        j := pyjobs_internal.read_job(quarantine_job.job_id);
        if not (stopped and pyjobs_internal.fence_leases(j.id, j.run, until)) then
            perform pyjobs_internal.raise_in_the_way(j.id, false);
        end if;
        perform pyjobs_internal.lock_job(j.id, until + interval '400 milliseconds');
        if pyjobs_internal.transition_job(j.id, 'UNKNOWN', 'quarantine_job',
            quarantine_job.reason) then
            return 'UNKNOWN';
        end if;
    end if;
    perform pyjobs_internal.raise_illegal(j.id, 'UNKNOWN');
end
$$;
