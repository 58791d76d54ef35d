-- pyjobs_internal.lock_job: lock a job's row for a change by an operator or a producer.
--
--   job_id   the job
--   until    wait no longer than that; null: as long as the caller's own settings allow
-- Returns     the row, as it is under the lock
-- Raises      PJ004 no such job, PJ006 somebody holds it past the bound
-- Locks       the job's row
-- Called by   the functions of operators and producers
create or replace function pyjobs_internal.lock_job(job_id bigint, until timestamptz)
returns pyjobs_internal.job
language plpgsql
as $$
begin
    begin
        if lock_job.until is not null then
            perform pyjobs_internal.bound_wait(lock_job.until);
        end if;
        perform from pyjobs_internal.job o where o.id = lock_job.job_id for update;
    exception when lock_not_available or deadlock_detected then
        perform pyjobs_internal.raise_in_the_way(lock_job.job_id, true);
    end;
    return pyjobs_internal.read_job(lock_job.job_id);
end
$$;
