-- pyjobs.claim_next_job: lease batches of the job whose turn it is.
--   Highest priority first; among equal jobs the one that has waited longest since it was served.
--
--   worker       the caller's name, as active_workers shows it
--   queues       the queues it serves
--   max_batches  how many batches at most, all of one job; 1 to 1,000,000
--   lease        how long it may take; more than 0, at most 1 day; extend_lease prolongs it
-- Returns     one row a batch: job_id, run, batch_id, lease_epoch, attempt (from 1), queue, stage,
--             params, items (a JSON array), lease_expires_at; no rows where there is nothing to do
-- Raises      PJ005 bad argument, PJ007 isolation level
-- Locks       offers and batches, by SKIP LOCKED; the job's serving lock, shared, by try: it never
--             waits
-- Called by   workers
create or replace function pyjobs.claim_next_job(
    worker text, queues text[] default '{default}', max_batches int default 1,
        lease interval default '60 seconds')
returns setof pyjobs.claimed_batch
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    -- A call costs as much as a check: the usual arguments are passed here.
    if (current_setting('transaction_isolation') = 'read committed'
        and length(claim_next_job.worker) between 1 and 200
        and array_ndims(claim_next_job.queues) = 1 and cardinality(claim_next_job.queues) = 1
        and length(claim_next_job.queues[1]) between 1 and 200
        and claim_next_job.max_batches between 1 and 1000000
        and claim_next_job.lease > interval '0' and claim_next_job.lease <= interval '1 day')
        is not true
    then
        perform pyjobs_internal.require_text('worker', claim_next_job.worker);
        perform pyjobs_internal.require_names('queues', claim_next_job.queues);
        perform pyjobs_internal.require_count('max_batches', claim_next_job.max_batches);
        perform pyjobs_internal.require_lease(claim_next_job.lease);
        perform pyjobs_internal.require_read_committed();
    end if;

    return query select * from pyjobs_internal.claim_from_offers(
        claim_next_job.worker, claim_next_job.queues, 1, claim_next_job.max_batches,
            claim_next_job.lease);
end
$$;
