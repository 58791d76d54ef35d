-- pyjobs_internal.set_paused: set or clear a job's pause.
--
--   job_id   the job; not final
--   paused   what it is to be
-- Returns     the job's status
-- Raises      PJ004 no such job, PJ005 null, PJ006 it is final, or somebody holds its row, PJ007
--             isolation level
-- Locks       the job's row
-- Called by   pause_job, resume_job
create or replace function pyjobs_internal.set_paused(job_id bigint, paused boolean)
returns pyjobs.job_status
language plpgsql
as $$
declare
    j pyjobs_internal.job;
begin
    -- An old snapshot would show offers that have been withdrawn since.
    perform pyjobs_internal.require_read_committed();
    j := pyjobs_internal.lock_job(set_paused.job_id,
        clock_timestamp() + interval '800 milliseconds');
    perform pyjobs_internal.refuse_final(j);
    update pyjobs_internal.job o
    set paused = set_paused.paused
    where o.id = j.id and o.paused <> set_paused.paused;
    -- Claims may have withdrawn its offer meanwhile.
    if not set_paused.paused then
        perform pyjobs_internal.offer_job(j.id);
    end if;
    return pyjobs_internal.status_of(j.id);
end
$$;
