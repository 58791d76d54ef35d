-- pyjobs_internal.close_batch: record a leased batch, and look whether that was the last.
--   Writes and locks its own row, and what it emits; nothing that another batch of the job writes
--   or locks, unless it is among the stage's last (advance_job). The status of the job is not
--   written with it.
--
--   batch_id, lease_epoch   the lease
--   failed, counters        checked by require_result; indexes are checked here against the batch
--   next_items              items for the next stage; null: none
--   tell                    a lease that does not hold is told of, not raised
-- Returns     outcome: null where it was recorded, with the result; else already (recorded under
--             this very lease), stale (another epoch, or fenced), unknown (no such batch)
-- Raises      PJ001, PJ002, PJ004, unless it is to tell; PJ005
-- Locks       the batch's row; the next stage's arrival lock, shared, where it emits, and now and
--             then as move_mark; then as advance_job
-- Called by   record_batch, record_and_claim, record_batches
create or replace function pyjobs_internal.close_batch(
    batch_id bigint, lease_epoch bigint, failed jsonb, counters jsonb, next_items jsonb,
    tell boolean, out outcome text, out result pyjobs.recorded_batch)
language plpgsql
as $$
declare
    b record;
    next_stage record;
    made bigint;
    job_status pyjobs.job_status;
    is_final boolean;
    stage_is_done boolean;
    others boolean;         -- there is one that somebody else will close
    seen boolean;           -- the lease, where it was looked for
    kept boolean;
begin
    -- Each expression costs, in each transaction: the usual path has few.
    -- What was given is checked against the batch and its stage, where there is something to check
    -- and the lease stands.
    if close_batch.failed <> '[]' or close_batch.next_items is not null then
        select o.job_id, o.run, o.stage, o.item_count into b
        from pyjobs_internal.batch o
        where o.id = close_batch.batch_id and o.lease_epoch = close_batch.lease_epoch
            and o.state = 'leased';
        seen := found;
        if seen and close_batch.failed <> '[]' then
            perform from jsonb_array_elements(close_batch.failed) f (entry)
            where (f.entry ->> 'index')::numeric >= b.item_count;
            if found then
                perform pyjobs_internal.raise_invalid('failed',
                    format('a JSON array whose indexes are below %s, the number of items in '
                        'batch %s', b.item_count, close_batch.batch_id),
                    close_batch.failed::text);
            end if;
        end if;
        if seen and close_batch.next_items is not null then
            -- Its own stage with it: a job that was ended and purged since has neither.
            select n.no, n.open, j.batch_size into next_stage
            from pyjobs_internal.stage s
            join pyjobs_internal.job j on j.id = s.job_id
            left join pyjobs_internal.stage n
                on n.job_id = s.job_id and n.run = s.run and n.no = s.no + 1
            where s.job_id = b.job_id and s.run = b.run and s.no = b.stage;
            seen := found;
            if seen and next_stage.no is null then
                perform pyjobs_internal.raise_invalid('next_items', 'null in the last stage',
                    close_batch.next_items::text);
            end if;
        end if;
    end if;

    -- Who is stale does not wait for a row that somebody else is changing: what he may see is not
    -- his, so that the update does not come to lock it. That it is leased is told by its time: by
    -- its state, a plan made when few were leased walks the index of all that are.
    update pyjobs_internal.batch o
    set state = 'recorded', closed_at = pyjobs_internal.clock(), lease_expires_at = null,
        failed = nullif(close_batch.failed, '[]'),
            failed_count = jsonb_array_length(close_batch.failed),
        counters = nullif(close_batch.counters, '{}')
    where o.id = close_batch.batch_id and o.lease_epoch = close_batch.lease_epoch
        and o.lease_expires_at is not null and seen is not false
    returning o.job_id, o.run, o.stage, o.worker, o.item_count into b;
    if not found then
        select case when o.lease_epoch = close_batch.lease_epoch and o.state = 'recorded'
            then 'already' else 'stale' end
        into outcome
        from pyjobs_internal.batch o
        where o.id = close_batch.batch_id;
        outcome := coalesce(outcome, 'unknown');
        if not close_batch.tell then
            perform pyjobs_internal.raise_refused(close_batch.batch_id, close_batch.lease_epoch,
                outcome);
        end if;
        return;
    end if;

    if close_batch.next_items is not null then
        perform pg_advisory_xact_lock_shared(pyjobs_internal.arrival_key(b.job_id,
            next_stage.no));
        made := pyjobs_internal.insert_batches(b.job_id, b.run, next_stage.no,
            close_batch.next_items, next_stage.batch_size, true);
        if made > 0 and next_stage.open then
            perform pyjobs_internal.offer_job(b.job_id);
        end if;
        if made > 0 and pyjobs_internal.mark_due(currval('pyjobs_internal.batch_id'), made::int)
        then
            perform pyjobs_internal.move_mark(b.job_id, b.run, next_stage.no, false);
        end if;
    end if;

    -- Look, in a statement of its own. Nearly always another batch of the stage is quietly open:
    -- done.
    select j.status,
        exists (select from pyjobs_internal.quiet_batch(b.job_id, b.run, b.stage))
    into job_status, others
    from pyjobs_internal.job j where j.id = b.job_id;
    if job_status = 'CANCELING' or not others or current_setting('pyjobs.kept', true) <> '' then
        if not others and close_batch.failed = '[]' then
            is_final := pyjobs_internal.end_simple(close_batch.batch_id, b.job_id, b.run,
                b.item_count, close_batch.counters, b.worker);
        end if;
        kept := pyjobs_internal.kept_here(close_batch.batch_id);
        if is_final then
            job_status := 'SUCCESS';
            stage_is_done := true;
        elsif kept or job_status = 'CANCELING' or not others then
            perform pyjobs_internal.look_after(b.job_id, kept, b.worker);
            select j.status, s.final, t.done into job_status, is_final, stage_is_done
            from pyjobs_internal.job j
            join pyjobs_internal.job_state s on s.status = j.status
            join pyjobs_internal.stage t on t.job_id = j.id and t.run = b.run and t.no = b.stage
            where j.id = b.job_id;
        end if;
    end if;

    -- A lease was out, so the job has been claimed.
    result := (b.job_id,
        case when job_status in ('PENDING', 'RETRY') then 'STARTED' else job_status end,
        coalesce(stage_is_done, false), coalesce(is_final, false));
end
$$;
