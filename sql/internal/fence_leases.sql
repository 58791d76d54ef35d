-- pyjobs_internal.fence_leases: take a job's leased batches from their holders, so that a late
-- result is refused by its own
--   row. They are pending again, under a new epoch; no attempt is spent. First all that are free,
--   then one by one those in flight.
--
--   job_id, run   the job's run; the caller has stopped its serving
--   until         wait no longer than that
-- Returns     true: none is leased any more; false: some are still in flight
-- Raises      nothing
-- Locks       the batches' rows, to the end of the transaction
-- Called by   cancel_job, finalize_job, quarantine_job, finish_cancel
create or replace function pyjobs_internal.fence_leases(job_id bigint, run int, until timestamptz)
returns boolean
language plpgsql
as $$
declare
    taken bigint[];
begin
    taken := array(
        select b.id from pyjobs_internal.batch b
        where b.job_id = fence_leases.job_id and b.run = fence_leases.run and b.state = 'leased'
        order by b.id
        for update skip locked);
    loop
        update pyjobs_internal.batch b
        set state = 'pending', lease_epoch = b.lease_epoch + 1, attempt = b.attempt - 1,
            lease_expires_at = null,
            returned_at = pyjobs_internal.clock(), due_at = '-infinity',
                pos = nextval('pyjobs_internal.batch_id')
        where b.id = any (taken);

        if not pyjobs_internal.obstacle_any(fence_leases.job_id, fence_leases.run, null) then
            return true;
        end if;
        begin
            perform pyjobs_internal.bound_wait(fence_leases.until);
            taken := array[pyjobs_internal.obstacle_lock(fence_leases.job_id, fence_leases.run,
                null, true)];
        exception when lock_not_available or deadlock_detected then
            return false;
        end;
    end loop;
end
$$;
