-- pyjobs_internal.return_batch: take a leased batch from its holder: back to the queue, or failed
-- when its attempts are
--   used up. It goes to the end of the order of service, so that nothing becomes pending behind one
--   that was passed.
--
--   batch_id, lease_epoch  the lease
--   error     why; null: it is given back without fault and costs no attempt
--   retry_in  how long it waits before it can be claimed again
-- Returns     outcome: pending, failed, or null where the lease no longer holds; job_id; look:
--             whether the caller must look whether that was the last obstacle (advance_job)
-- Raises      nothing
-- Locks       its stage's arrival lock, shared; the batch's row
-- Called by   release_batch, expire_leases
create or replace function pyjobs_internal.return_batch(
    batch_id bigint, lease_epoch bigint, error text, retry_in interval,
    out outcome pyjobs.batch_state, out job_id bigint, out look boolean)
language plpgsql
as $$
declare
    due timestamptz := case when return_batch.retry_in > interval '0'
        then pyjobs_internal.clock() + return_batch.retry_in
                       else '-infinity' end;
    spent boolean;
    stage smallint;
begin
    select return_batch.error is not null and b.attempt >= j.max_attempts, b.stage, b.job_id
    into spent, stage, job_id
    from pyjobs_internal.batch b
    join pyjobs_internal.job j on j.id = b.job_id
    where b.id = return_batch.batch_id;
    if not found then
        return;
    end if;

    -- Before its new position is drawn.
    perform pg_advisory_xact_lock_shared(pyjobs_internal.arrival_key(job_id, stage));
    update pyjobs_internal.batch b
    set state = case when spent then 'failed' else 'pending' end::pyjobs.batch_state,
        closed_at = case when spent then pyjobs_internal.clock() end,
        failed_count = case when spent then b.item_count else 0 end,
        attempt = b.attempt - (return_batch.error is null)::int,
        error = coalesce(return_batch.error, b.error),
        lease_expires_at = null, returned_at = pyjobs_internal.clock(), due_at = due,
            pos = nextval('pyjobs_internal.batch_id')
    where b.id = return_batch.batch_id and b.lease_epoch = return_batch.lease_epoch
        and b.state = 'leased'
    returning b.state into outcome;
    if not found then
        job_id := null;
        return;
    end if;
    if outcome = 'pending' then
        perform pyjobs_internal.offer_job(job_id, nullif(due, '-infinity'));
    end if;
    -- When cancelling, any lease that ends may be the last.
    look := outcome = 'failed'
        or exists (select from pyjobs_internal.job j where j.id = return_batch.job_id
            and j.status = 'CANCELING');
end
$$;
