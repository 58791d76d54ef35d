-- pyjobs.cancel_job: stop a job. Claims stop at once.
--   With nothing leased it is REVOKED here; with leases out CANCELING, and whoever closes the last
--   of them ends it.
--
--   job_id  the job
--   reason  why, for the history; may be null
--   grace   how long leased batches may still be recorded; 0 fences them now; 0 to 365 days. Called
--           again: the earlier deadline holds
-- Returns     job_status: REVOKED; CANCELING, also with grace 0 where a transaction in flight is in
--             the way (the next to close a lease, or reap, ends it then); on a final job its state,
--             and what it still held is freed
-- Raises      PJ004 no such job, PJ005 bad argument, PJ006 somebody is ending the job at this
--             moment, PJ007 isolation level
-- Locks       the job's serving lock (and intake lock where unsealed), leased batches, the job's
--             row; it waits at most 1 second
-- Called by   operators
create or replace function pyjobs.cancel_job(job_id bigint, reason text default null,
    grace interval default '30 seconds')
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    until constant timestamptz := clock_timestamp() + interval '500 milliseconds';
    j pyjobs_internal.job;
    settled boolean;
    none_out boolean := false;
begin
    perform pyjobs_internal.require_reason('reason', cancel_job.reason);
    perform pyjobs_internal.require_interval('grace', cancel_job.grace);
    perform pyjobs_internal.require_read_committed();
    j := pyjobs_internal.read_job(cancel_job.job_id);
    if j.finished_at is not null then
        perform pyjobs_internal.fence_leases(j.id, j.run, until);
        return j.status;
    end if;

    settled := pyjobs_internal.stop_serving(j.id, until);
    -- While we waited its run may have ended, and another begun: with the serving stopped none can.
    j := pyjobs_internal.read_job(cancel_job.job_id);
    if settled and cancel_job.grace = interval '0' then
        none_out := pyjobs_internal.fence_leases(j.id, j.run, until);
    elsif settled then
        begin
            perform pyjobs_internal.bound_wait(until);
            none_out := not pyjobs_internal.hand_over(j.id, j.run, null);
        exception when lock_not_available or deadlock_detected then
            none_out := false;
        end;
    end if;

    j := pyjobs_internal.lock_job(j.id, until + interval '400 milliseconds');
    if j.finished_at is not null then
        return j.status;
    end if;
    if settled and none_out then
        perform pyjobs_internal.transition_job(j.id, 'REVOKED', 'cancel_job', cancel_job.reason);
        -- Thousands of cancelled jobs would else be left to the next claims to look through.
        perform pyjobs_internal.settle_offers(array[j.id], false, '-infinity');
        return 'REVOKED';
    end if;
    if j.status = 'CANCELING' then
        update pyjobs_internal.job o
        set cancel_deadline = least(o.cancel_deadline, pyjobs_internal.clock() + cancel_job.grace),
            cancel_settled = o.cancel_settled or settled
        where o.id = j.id;
    elsif pyjobs_internal.transition_job(j.id, 'CANCELING', 'cancel_job', cancel_job.reason) then
        update pyjobs_internal.job o
        set cancel_deadline = pyjobs_internal.clock() + cancel_job.grace, cancel_settled = settled
        where o.id = j.id;
    else
        -- Set aside, and still somebody's transaction is in the way.
        perform pyjobs_internal.raise_in_the_way(j.id, false);
    end if;
    return 'CANCELING';
end
$$;
