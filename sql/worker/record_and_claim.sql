-- pyjobs.record_and_claim: record a batch and lease the next ones, in one trip and one commit.
--   Those of the same job, as long as it has any: the caller has chosen to stay on it. With queues
--   then those of the job whose turn it is: a worker that is never without work pays for one commit
--   a batch, also where each job has but one.
--
--   batch_id, lease_epoch, failed, counters, next_items  as record_batch
--   worker, max_batches, lease                           as claim_next_batch
--   queues      where its job has no more, claim as claim_next_job does; null: do not
-- Returns     the columns of a claim, and recorded_status: the status of the job that was recorded,
--             after the recording; one row a batch, all of one job, or one row with that job's id
--             and a null batch_id where there is no more
-- Raises      as record_batch and claim_next_batch
-- Locks       as record_batch, then as claim_next_batch and claim_next_job, which never wait
-- Called by   workers
create or replace function pyjobs.record_and_claim(
    batch_id bigint, lease_epoch bigint, worker text, failed jsonb default '[]',
        counters jsonb default '{}',
    next_items jsonb default null, max_batches int default 1, lease interval default '60 seconds',
        queues text[] default null)
returns setof pyjobs.recorded_and_claimed
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    recorded pyjobs.recorded_batch;
    got boolean := false;
begin
    -- A call costs as much as a check: the usual arguments are passed here.
    if (current_setting('transaction_isolation') = 'read committed'
        and length(record_and_claim.worker) between 1 and 200
        and record_and_claim.max_batches between 1 and 1000000
        and record_and_claim.lease > interval '0' and record_and_claim.lease <= interval '1 day'
        and record_and_claim.failed = '[]' and record_and_claim.counters = '{}'
        and record_and_claim.batch_id is not null and record_and_claim.lease_epoch is not null
        and record_and_claim.next_items is null
        and (record_and_claim.queues is null or array_ndims(record_and_claim.queues) = 1
            and cardinality(record_and_claim.queues) = 1
            and length(record_and_claim.queues[1]) between 1 and 200)) is not true
    then
        perform pyjobs_internal.require_read_committed();
        perform pyjobs_internal.require_text('worker', record_and_claim.worker);
        perform pyjobs_internal.require_count('max_batches', record_and_claim.max_batches);
        perform pyjobs_internal.require_lease(record_and_claim.lease);
        perform pyjobs_internal.require_result(record_and_claim.failed, record_and_claim.counters);
        perform pyjobs_internal.require_lease_shown(record_and_claim.batch_id,
            record_and_claim.lease_epoch);
        if record_and_claim.next_items is not null then
            perform pyjobs_internal.require_items('next_items', record_and_claim.next_items);
        end if;
        if record_and_claim.queues is not null then
            perform pyjobs_internal.require_names('queues', record_and_claim.queues);
        end if;
    end if;

    recorded := (pyjobs_internal.close_batch(record_and_claim.batch_id,
        record_and_claim.lease_epoch, record_and_claim.failed, record_and_claim.counters,
        record_and_claim.next_items, false)).result;

    if not recorded.job_done then
        return query
        select c.job_id, c.run, c.batch_id, c.lease_epoch, c.attempt, c.queue, c.stage, c.params,
            c.items, c.lease_expires_at, recorded.job_status
        from pyjobs_internal.claim_from_job(
            recorded.job_id, record_and_claim.worker, record_and_claim.max_batches,
                record_and_claim.lease) c;
        got := found;
    end if;
    if not got and record_and_claim.queues is not null then
        return query
        select c.job_id, c.run, c.batch_id, c.lease_epoch, c.attempt, c.queue, c.stage, c.params,
            c.items, c.lease_expires_at, recorded.job_status
        from pyjobs_internal.claim_from_offers(
            record_and_claim.worker, record_and_claim.queues, 1, record_and_claim.max_batches,
                record_and_claim.lease) c;
        got := found;
    else
        perform pyjobs_internal.note_worker(record_and_claim.worker, record_and_claim.queues,
            false);
    end if;
    if not got then
        return query select recorded.job_id, null::int, null::bigint, null::bigint, null::int,
            null::text, null::text,
            null::jsonb, null::jsonb, null::timestamptz, recorded.job_status;
    end if;
end
$$;
