-- pyjobs.release_job: let a held job be worked: CREATED becomes PENDING. Safe to repeat.
--   Where there is nothing to do, and it is sealed, it ends here.
--
--   job_id   the job
-- Returns     the job's status
-- Raises      PJ004 no such job, PJ005 null, PJ007 isolation level
-- Locks       the job's row; where it has nothing to do, as record_batch for the last
-- Called by   producers
create or replace function pyjobs.release_job(job_id bigint)
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    j pyjobs_internal.job;
begin
    perform pyjobs_internal.require_read_committed();
    j := pyjobs_internal.lock_job(release_job.job_id, null);
    if j.status = 'CREATED' then
        perform pyjobs_internal.transition_job(j.id, 'PENDING', 'release_job', null);
        perform pyjobs_internal.offer_job(j.id, j.run_at);
        perform pyjobs_internal.advance_job(j.id, true, 'release_job');
    end if;
    return pyjobs_internal.status_of(j.id);
end
$$;
