-- pyjobs_internal.delete_jobs: delete these jobs with their batches, stages, history and refused
--   results.
--
--   ids   of jobs whose rows the caller has locked, and has seen to be final
-- Returns     nothing
-- Raises      nothing of its own
-- Locks       the jobs' rows and all that goes with them, but for offers that a claim has in hand
-- Called by   purge_jobs
create or replace function pyjobs_internal.delete_jobs(ids bigint[])
returns void
language plpgsql
as $$
begin
    delete from pyjobs_internal.batch b where b.job_id = any (delete_jobs.ids);
    delete from pyjobs_internal.claim_mark m where m.job_id = any (delete_jobs.ids);
    delete from pyjobs_internal.stage s where s.job_id = any (delete_jobs.ids);
    delete from pyjobs_internal.job_start f where f.job_id = any (delete_jobs.ids);
    -- A claim withdraws the offer that it has in its hand; its transaction may be long.
    delete from pyjobs_internal.offer o
    where o.id = any (array(
        select f.id from pyjobs_internal.offer f
        where f.job_id = any (delete_jobs.ids)
        for update skip locked));
    delete from pyjobs_internal.history h where h.job_id = any (delete_jobs.ids);
    delete from pyjobs_internal.refusal r where r.job_id = any (delete_jobs.ids);
    delete from pyjobs_internal.job j where j.id = any (delete_jobs.ids);
end
$$;
