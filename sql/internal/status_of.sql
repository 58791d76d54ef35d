-- pyjobs_internal.status_of: the status of a job that people see, read afresh.
--
--   job_id   the job
-- Returns     its status; null where there is no such job
-- Raises      nothing
-- Locks       nothing
-- Called by   the functions that return a job's status
create or replace function pyjobs_internal.status_of(job_id bigint)
returns pyjobs.job_status
language sql volatile
as $$
    select pyjobs_internal.effective_status(j.status, j.id, j.era)
    from pyjobs_internal.job j
    where j.id = status_of.job_id
$$;
