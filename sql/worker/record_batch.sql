-- pyjobs.record_batch: record the result of a leased batch, in the transaction that holds the
-- caller's own rows.
--   It counts once, or not at all. Whoever records the last batch ends the job in the same
--   transaction; to be sure that it is the last, it may wait for transactions that recorded before
--   it and are still open.
--
--   batch_id, lease_epoch  the lease, as the claim returned it; the epoch alone decides, not the
--                          time
--   failed      the items that failed: [{"index": from 0, "error": "..."}, ..], each once; the rest
--               succeeded
--   counters    {"name": whole number from 0, ..}, added to the stage's counters
--   next_items  a JSON array of items for the next stage; must be null in the last
-- Returns     job_id, job_status, stage_done (this batch's stage is complete), job_done (the job is
--             final)
-- Raises      PJ001 stale lease, PJ002 already recorded under this lease, PJ004 no such batch,
--             PJ005 bad argument, PJ007 isolation level; whatever it raises, roll back
-- Locks       the batch's row; when it may be the last of its stage: the ender, batches in flight,
--             stages, the job's row
-- Called by   workers
create or replace function pyjobs.record_batch(
    batch_id bigint, lease_epoch bigint, failed jsonb default '[]', counters jsonb default '{}',
        next_items jsonb default null)
returns pyjobs.recorded_batch
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    -- A call costs as much as a check: the usual arguments are passed here.
    if (current_setting('transaction_isolation') = 'read committed'
        and record_batch.failed = '[]' and record_batch.counters = '{}'
        and record_batch.batch_id is not null and record_batch.lease_epoch is not null
        and record_batch.next_items is null) is not true
    then
        perform pyjobs_internal.require_read_committed();
        perform pyjobs_internal.require_result(record_batch.failed, record_batch.counters);
        perform pyjobs_internal.require_lease_shown(record_batch.batch_id,
            record_batch.lease_epoch);
        if record_batch.next_items is not null then
            perform pyjobs_internal.require_items('next_items', record_batch.next_items);
        end if;
    end if;

    return (pyjobs_internal.close_batch(record_batch.batch_id, record_batch.lease_epoch,
        record_batch.failed, record_batch.counters, record_batch.next_items, false)).result;
end
$$;
