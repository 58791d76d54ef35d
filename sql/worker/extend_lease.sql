-- pyjobs.extend_lease: keep a lease alive; how a worker learns of a cancel.
--
--   batch_id, lease_epoch  the lease; one that has run out but was not taken yet can still be
--                          extended
--   lease                  how long from now on, so it can also shorten; more than 0, at most 1 day
-- Returns     lease_expires_at, job_status (CANCELING: stop, or finish within the grace)
-- Raises      PJ001 stale lease, PJ002 already recorded, PJ004 no such batch, PJ005 bad argument
-- Locks       the batch's row
-- Called by   workers
create or replace function pyjobs.extend_lease(batch_id bigint, lease_epoch bigint,
    lease interval default '60 seconds')
returns pyjobs.lease_state
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    b record;
    extended timestamptz;
begin
    perform pyjobs_internal.require_lease_shown(extend_lease.batch_id, extend_lease.lease_epoch);
    perform pyjobs_internal.require_lease(extend_lease.lease);
    perform pyjobs_internal.require_read_committed();

    select * into b from pyjobs_internal.held_lease(extend_lease.batch_id,
        extend_lease.lease_epoch);
    update pyjobs_internal.batch o
    set lease_expires_at = pyjobs_internal.clock() + extend_lease.lease
    where o.id = extend_lease.batch_id and o.lease_epoch = extend_lease.lease_epoch
        and o.state = 'leased'
    returning o.lease_expires_at into extended;
    if not found then
        perform pyjobs_internal.held_lease(extend_lease.batch_id, extend_lease.lease_epoch);
    end if;
    perform pyjobs_internal.note_worker(b.worker, null, false);
    return (extended, pyjobs_internal.status_of(b.job_id));
end
$$;
