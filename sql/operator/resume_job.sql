-- pyjobs.resume_job: let a paused job be claimed again. Safe to repeat.
--
--   job_id   the job; not final
-- Returns     the job's status, which this does not change
-- Raises      PJ004 no such job, PJ005 null, PJ006 it is final, or somebody holds its row, PJ007
--             isolation level
-- Locks       the job's row; it waits at most 1 second
-- Called by   operators
create or replace function pyjobs.resume_job(job_id bigint)
returns pyjobs.job_status
language sql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$ select pyjobs_internal.set_paused(resume_job.job_id, false) $$;
