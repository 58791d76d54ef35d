-- pyjobs.pause_job: claim nothing more of a job. Work in flight may be recorded, and may end it.
-- Safe to repeat.
--
--   job_id   the job; not final
-- Returns     the job's status, which this does not change
-- Raises      PJ004 no such job, PJ005 null, PJ006 it is final, or somebody holds its row, PJ007
--             isolation level
-- Locks       the job's row; it waits at most 1 second
-- Called by   operators
create or replace function pyjobs.pause_job(job_id bigint)
returns pyjobs.job_status
language sql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$ select pyjobs_internal.set_paused(pause_job.job_id, true) $$;
