-- pyjobs_internal.status_of: the status of a job that people see, read afresh.
--
--   job_id   the job
-- Returns     its status; null where there is no such job
-- Raises      nothing
-- Locks       nothing
-- Called by   the functions that return a job's status
create or replace function pyjobs_internal.status_of(job_id bigint)
returns pyjobs.job_status
language plpgsql
as $$
declare
    j record;
begin
    select o.status, o.id, o.era into j from pyjobs_internal.job o where o.id = status_of.job_id;
    return pyjobs_internal.effective_status(j.status, j.id, j.era);
end
$$;
