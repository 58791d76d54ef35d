-- pyjobs.seal_job: no more items come; from now on the job completes when its batches are done.
-- Safe to repeat.
--   Where nothing is open any more the job ends here.
--
--   job_id   the job
-- Returns     the job's status
-- Raises      PJ004 no such job, PJ005 null, PJ007 isolation level
-- Locks       the job's intake lock, exclusively: it waits for add_items in flight; the job's row;
--             one open batch, or where all are in flight it waits for them; then as record_batch
--             for the last
-- Called by   producers
create or replace function pyjobs.seal_job(job_id bigint)
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    j pyjobs_internal.job;
begin
    perform pyjobs_internal.require_read_committed();
    if seal_job.job_id is null then
        perform pyjobs_internal.raise_no_job(null);
    end if;
    perform pg_advisory_xact_lock(pyjobs_internal.intake_key(seal_job.job_id));
    j := pyjobs_internal.lock_job(seal_job.job_id, null);
    if not j.sealed and j.finished_at is null then
        update pyjobs_internal.job o set sealed = true where o.id = j.id;
        perform pyjobs_internal.advance_job(j.id, true, 'seal_job');
    end if;
    return pyjobs_internal.status_of(j.id);
end
$$;
