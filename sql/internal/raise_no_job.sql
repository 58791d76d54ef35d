-- pyjobs_internal.raise_no_job: say that there is no such job.
--
--   job_id   the id asked for; null is refused as an argument
-- Returns     nothing
-- Raises      PJ004, or PJ005 for a null
-- Locks       nothing
-- Called by   every public function that takes a job's id
create or replace function pyjobs_internal.raise_no_job(job_id bigint)
returns void
language plpgsql
as $$
begin
    if raise_no_job.job_id is null then
        perform pyjobs_internal.raise_invalid('job_id', 'a job''s id', null);
    end if;
    raise exception 'there is no job %', raise_no_job.job_id
        using errcode = 'PJ004',
              detail = 'No job has that id; it may have been purged.',
              hint = 'Look for it in pyjobs.job.';
end
$$;
