-- pyjobs_internal.move_mark: move a stage's low-water mark up to its first batch that waits, and
-- note there what the stage has come to.
--   A mark may only pass positions at which nothing can come to wait any more. What has gone by
--   does not come back: a batch that is returned draws a new position. What is on its way is kept
--   off by the stage's arrival lock: whoever adds a batch, or returns one, holds it shared from
--   before he draws the position until he has ended. With that lock for ourselves all that is below
--   the first batch that we see has been claimed, or was never written; a claim in flight has not
--   taken its batch out of our sight. Not got: another time. We give it back at once, since our
--   transaction may be long. Where we are rolled back, the call that called us is as well.
--   The sums hold for the same reason: see closed_between. And whatever has an id below one that is
--   drawn by now is there to be counted for the total.
--
--   job_id, run, stage   the stage
--   claimed   true: the caller has just claimed of it. false: he has added to it, and only the
--             total moves: what an operator takes back while no claim is served, without that lock,
--             might come to lie below a mark. (The default is for claims that are under way while
--             this function takes the place of one without it.)
-- Returns     nothing
-- Raises      nothing
-- Locks       the stage's arrival lock, exclusively, by try, for one look
-- Called by   claim_from_job, claim_from_jobs, add_items, close_batch, retry_job
create or replace function pyjobs_internal.move_mark(job_id bigint, run int, stage smallint,
    claimed boolean default true)
returns void
language plpgsql
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
    set jit = off
as $$
declare
    -- Of the newest mark, and then of the one that is made.
    mark bigint;
    summed_to bigint;
    still_open bigint[];
    succeeded bigint;
    failed bigint;
    counters jsonb;
    total_to bigint;
    total bigint;
    first bigint;
    next bigint;
    since record;       -- what has been closed since the last sums
    came bigint;        -- items that have come since the last total
    changed boolean := false;
begin
    select m.pos, m.summed_to, m.still_open, m.succeeded, m.failed, m.counters, m.total_to, m.total
    into mark, summed_to, still_open, succeeded, failed, counters, total_to, total
    from pyjobs_internal.claim_mark m
    where m.job_id = move_mark.job_id and m.run = move_mark.run and m.stage = move_mark.stage
    order by m.job_id desc, m.run desc, m.stage desc, m.pos desc, m.total_to desc
    limit 1;
    if not found then
        mark := 0;
        summed_to := 0;
        still_open := '{}';
        succeeded := 0;
        failed := 0;
        counters := '{}';
        total_to := 0;
        total := 0;
    end if;

    begin
        if pg_try_advisory_xact_lock(pyjobs_internal.arrival_key(move_mark.job_id,
            move_mark.stage))
        then
            if move_mark.claimed then
                select b.pos into first
                from pyjobs_internal.batch b
                where b.job_id = move_mark.job_id and b.run = move_mark.run
                    and b.stage = move_mark.stage
                    and b.state = 'pending' and b.due_at = '-infinity' and b.pos >= mark
                order by b.job_id, b.run, b.stage, b.due_at, b.pos
                limit 1;
                -- Above all that ever came. Drawn, not read: another session that draws at this
                -- moment lets a reader see its sequence up to 32 values in the future, and what is
                -- drawn next would stay below the mark for ever.
                next := nextval('pyjobs_internal.batch_id');
            else
                -- Whoever drew before the caller has ended.
                next := currval('pyjobs_internal.batch_id') + 1;
            end if;
        end if;
        raise exception using errcode = 'PJ0RB';
    exception when sqlstate 'PJ0RB' then
        null;
    end;
    if next is null then
        return;
    end if;
    -- Where none waits, all that ever came has gone by.
    first := case when move_mark.claimed then coalesce(first, next) else mark end;

    if first > summed_to then
        select c.* into since
        from pyjobs_internal.closed_between(move_mark.job_id, move_mark.run, move_mark.stage,
            summed_to, first, still_open) c;
        -- With very many out, another time: each mark has the list.
        if cardinality(since.still_open) <= 10000 then
            changed := true;
            summed_to := since.up_to;
            still_open := since.still_open;
            succeeded := succeeded + since.succeeded;
            failed := failed + since.failed;
            if since.counters <> '{}' then
                counters := pyjobs_internal.add_counters(counters, since.counters);
                if pg_column_size(counters) > 8000 then
                    -- Not in each mark, from here on.
                    summed_to := null;
                end if;
            end if;
        end if;
    end if;

    if summed_to is not null then
        -- Not "b.id >=": that would be looked for among the ids of all jobs.
        select sum(b.item_count) into came
        from pyjobs_internal.batch b
        where b.job_id = move_mark.job_id and b.run = move_mark.run and b.stage = move_mark.stage
            and (b.closed_at is null) = any ('{t,f}')
            and b.pos >= total_to and b.id - total_to >= 0 and b.id - next < 0;
        changed := changed or came is not null;
    end if;

    -- The total's bound goes along with every mark: what is returned lies above it.
    if first > mark or changed then
        total_to := next;
        total := total + coalesce(came, 0);
        insert into pyjobs_internal.claim_mark (job_id, run, stage, pos, summed_to, still_open,
            succeeded, failed, counters, total_to, total)
        values (move_mark.job_id, move_mark.run, move_mark.stage, first, summed_to, still_open,
            succeeded, failed, counters, total_to, total);
    end if;
end
$$;
