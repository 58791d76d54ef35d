-- pyjobs_internal.move_mark: move a stage's low-water mark up to its first batch that waits.
--   A mark may only pass positions at which nothing can come to wait any more. What has gone by
--   does not come back: a batch that is returned draws a new position. What is on its way is kept
--   off by the stage's arrival lock: whoever adds a batch, or returns one, holds it shared from
--   before he draws the position until he has ended. With that lock for ourselves all that is below
--   the first batch that we see has been claimed, or was never written; a claim in flight has not
--   taken its batch out of our sight. Not got: another time. We give it back at once, since our
--   transaction may be long. Where we are rolled back, the claim that called us is as well.
--
--   job_id, run, stage   the stage; the caller has just claimed of it
-- Returns     nothing
-- Raises      nothing
-- Locks       the stage's arrival lock, exclusively, by try, for one look
-- Called by   claim_from_job, claim_from_jobs
create or replace function pyjobs_internal.move_mark(job_id bigint, run int, stage smallint)
returns void
language plpgsql
as $$
declare
    mark constant bigint := pyjobs_internal.low_water(move_mark.job_id, move_mark.run,
        move_mark.stage);
    first bigint;
begin
    begin
        if pg_try_advisory_xact_lock(pyjobs_internal.arrival_key(move_mark.job_id,
            move_mark.stage))
        then
            select b.pos into first
            from pyjobs_internal.batch b
            where b.job_id = move_mark.job_id and b.run = move_mark.run
                and b.stage = move_mark.stage
                and b.state = 'pending' and b.due_at = '-infinity' and b.pos >= mark
            order by b.job_id, b.run, b.stage, b.due_at, b.pos
            limit 1;
            if first is null then
                -- All that ever came has gone by. Drawn, not read: another session that draws at
                -- this moment lets a reader see its sequence up to 32 values in the future, and
                -- what is drawn next would stay below the mark for ever.
                first := nextval('pyjobs_internal.batch_id');
            end if;
        end if;
        raise exception using errcode = 'PJ0RB';
    exception when sqlstate 'PJ0RB' then
        null;
    end;
    if first > mark then
        insert into pyjobs_internal.claim_mark (job_id, run, stage, pos)
        values (move_mark.job_id, move_mark.run, move_mark.stage, first);
    end if;
end
$$;
