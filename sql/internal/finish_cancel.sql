-- pyjobs_internal.finish_cancel: end a job that is being cancelled, where it can be ended now.
--   With its grace over its leases are fenced; before that it ends only where none is out.
--
--   job_id   the job
--   by       who does it
--   until    wait no longer than that
-- Returns     whether it is REVOKED now
-- Raises      PJ006 where its row is held past the bound
-- Locks       as stop_serving, then leased batches, then the job's row
-- Called by   expire_cancels
create or replace function pyjobs_internal.finish_cancel(job_id bigint, by text, until timestamptz)
returns boolean
language plpgsql
as $$
declare
    j pyjobs_internal.job;
begin
    if not pyjobs_internal.stop_serving(finish_cancel.job_id, finish_cancel.until) then
        return false;
    end if;
    select * into j from pyjobs_internal.job o where o.id = finish_cancel.job_id;
    if j.status is distinct from 'CANCELING' then
        return false;
    end if;
    if j.cancel_deadline <= pyjobs_internal.clock() then
        if not pyjobs_internal.fence_leases(finish_cancel.job_id, j.run, finish_cancel.until) then
            return false;
        end if;
    elsif pyjobs_internal.obstacle_any(finish_cancel.job_id, j.run, null) then
        return false;
    end if;
    perform pyjobs_internal.lock_job(finish_cancel.job_id, finish_cancel.until);
    return pyjobs_internal.transition_job(finish_cancel.job_id, 'REVOKED', finish_cancel.by,
        case when j.cancel_deadline <= pyjobs_internal.clock()
            then 'cancelled, and the grace is over'
             else 'cancelled, and nothing is leased' end);
end
$$;
