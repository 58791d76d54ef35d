-- pyjobs.claim_next_batch: lease more batches of one job. No earlier claim is needed.
--   Any open stage, later stages first. A worker that stays on its job has chosen to: no other
--   job's turn is kept.
--
--   job_id       the job
--   worker       the caller's name
--   max_batches  how many at most; 1 to 1,000,000
--   lease        how long each may take; more than 0, at most 1 day
-- Returns     rows as claim_next_job; none where the job is not claimable, paused or not due, or
--             has nothing to claim
-- Raises      PJ004 no such job, PJ005 bad argument, PJ007 isolation level
-- Locks       batches, by SKIP LOCKED; the job's serving lock, shared, by try: it never waits
-- Called by   workers
create or replace function pyjobs.claim_next_batch(
    job_id bigint, worker text, max_batches int default 1, lease interval default '60 seconds')
returns setof pyjobs.claimed_batch
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    got boolean;
begin
    -- A call costs as much as a check: the usual arguments are passed here.
    if (current_setting('transaction_isolation') = 'read committed'
        and length(claim_next_batch.worker) between 1 and 200
        and claim_next_batch.max_batches between 1 and 1000000
        and claim_next_batch.lease > interval '0' and claim_next_batch.lease <= interval '1 day')
        is not true
    then
        perform pyjobs_internal.require_text('worker', claim_next_batch.worker);
        perform pyjobs_internal.require_count('max_batches', claim_next_batch.max_batches);
        perform pyjobs_internal.require_lease(claim_next_batch.lease);
        perform pyjobs_internal.require_read_committed();
    end if;

    return query select * from pyjobs_internal.claim_from_job(
        claim_next_batch.job_id, claim_next_batch.worker, claim_next_batch.max_batches,
            claim_next_batch.lease);
    got := found;
    if not got then
        perform from pyjobs_internal.job j where j.id = claim_next_batch.job_id;
        if not found then
            perform pyjobs_internal.raise_no_job(claim_next_batch.job_id);
        end if;
    end if;
    perform pyjobs_internal.note_worker(claim_next_batch.worker, null, false);
end
$$;
