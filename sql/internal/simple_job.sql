-- pyjobs_internal.simple_job: the job, where it has one stage to which nothing can come any more.
--   A sealed job of one stage: whoever closes its last open batch ends it, and nothing else stands
--   in the way. Not where this transaction has handed over to a batch (kept_here). In SQL and
--   stable, so that the server puts it in place of the call.
--
--   job_id, run   the job's run
-- Returns     the job's id, or no row
-- Raises      nothing
-- Locks       nothing
-- Called by   only_batch, end_simple
create or replace function pyjobs_internal.simple_job(job_id bigint, run int)
returns setof bigint
language sql stable rows 1
as $$
    select j.id
    from pyjobs_internal.job j
    where j.id = simple_job.job_id and j.run = simple_job.run and j.sealed
        and (select s.claimable from pyjobs_internal.job_state s where s.status = j.status)
        and not exists (
            select from pyjobs_internal.stage s
            where s.job_id = simple_job.job_id and s.run = simple_job.run and s.no > 1)
        and coalesce(current_setting('pyjobs.kept', true), '') = ''
$$;
