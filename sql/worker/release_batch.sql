-- pyjobs.release_batch: give a leased batch back.
--
--   batch_id, lease_epoch  the lease
--   error     what went wrong: costs an attempt, and after the last all its items count as failed;
--             null: nothing did (a worker that drains), no attempt is spent
--   retry_in  how long it waits before it can be claimed again; 0 to 365 days
-- Returns     the job's status
-- Raises      PJ001 stale lease, PJ002 already recorded, PJ004 no such batch, PJ005 bad argument,
--             PJ007 isolation level
-- Locks       the batch's row; where that may have been the last: as record_batch
-- Called by   workers
create or replace function pyjobs.release_batch(
    batch_id bigint, lease_epoch bigint, error text default null, retry_in interval default '0')
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    b record;
    returned record;
begin
    perform pyjobs_internal.require_lease_shown(release_batch.batch_id, release_batch.lease_epoch);
    perform pyjobs_internal.require_reason('error', release_batch.error);
    perform pyjobs_internal.require_interval('retry_in', release_batch.retry_in);
    perform pyjobs_internal.require_read_committed();

    select * into b from pyjobs_internal.held_lease(release_batch.batch_id,
        release_batch.lease_epoch);
    select * into returned from pyjobs_internal.return_batch(
        release_batch.batch_id, release_batch.lease_epoch, release_batch.error,
            release_batch.retry_in);
    if returned.outcome is null then
        perform pyjobs_internal.held_lease(release_batch.batch_id, release_batch.lease_epoch);
    end if;
    if returned.look then
        perform pyjobs_internal.look_after(b.job_id,
            pyjobs_internal.kept_here(release_batch.batch_id), b.worker);
    end if;
    return pyjobs_internal.status_of(b.job_id);
end
$$;
