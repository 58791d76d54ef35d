-- pyjobs_internal.read_job: a job's row as it is now, which must be there. Who has waited reads it
-- again by this as well: it may have been ended and purged meanwhile.
--
--   job_id   the job
-- Returns     the row
-- Raises      PJ004 no such job, PJ005 job_id is null
-- Locks       nothing
-- Called by   lock_job, cancel_job, finalize_job, quarantine_job
create or replace function pyjobs_internal.read_job(job_id bigint)
returns pyjobs_internal.job
language plpgsql
as $$
declare
    j pyjobs_internal.job;
begin
    select * into j from pyjobs_internal.job o where o.id = read_job.job_id;
    if not found then
        perform pyjobs_internal.raise_no_job(read_job.job_id);
    end if;
    return j;
end
$$;
