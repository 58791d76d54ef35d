-- pyjobs_internal.advance_job: the last one out. Completes stages, and ends the job, where nothing
-- stands in the way.
--   Called by whoever has just removed an obstacle: closed a batch, sealed, resolved, released.
--   Each look is a statement of its own, so that it sees what committed before it.
--   docs/how-it-works.md has the argument; in short:
--     1. What are the obstacles? A stage's open batches; when cancelling, the leased ones.
--     2. One is quiet: its closer looks after us.
--     3. One can be locked: nobody is changing it, its closer looks after us. The lock is rolled
--        back.
--     4. All are in flight, or there is none: become the run's ender (not got: whoever has it waits
--        for us) and wait for them. When cancelling the ender is another row: that of the cancel in
--        the history.
--     5. A fresh look, unless there was none: still one? Roll back, from the start.
--     6. None: the stage is done. Who has completed a stage has changed what counts as an obstacle
--        of the next, and keeps one of those to the commit (hand_over); none: that stage is done
--        too. After the last the job ends.
--
--   job_id     the job
--   hand_over  false: we closed a batch. true: we removed what is no batch (seal, hold, quarantine)
--              and hold the job's row, or closed the batch that we had handed over to; then an
--              obstacle is not just seen but kept to our commit
--   by         who does it, for the history
-- Returns     nothing
-- Raises      55P03 past the caller's lock_timeout, if one is set
-- Locks       in this order: the ender (stage 1 of the run; when cancelling, the cancel's row in
--             the history), batches in flight while it waits, one obstacle that it hands over to,
--             stages, the job's row. All is rolled back where it does not complete anything
-- Called by   look_after, seal_job, release_job, resolve_job, retry_job, enqueue_job
create or replace function pyjobs_internal.advance_job(job_id bigint, hand_over boolean, by text)
returns void
language plpgsql
as $$
declare
    j record;
    stage_no smallint;      -- null: the obstacles are those of a cancel
    completed boolean;      -- something was changed: an obstacle must be kept to the commit
    alone boolean;          -- the stage has no obstacle, not even in flight: nobody to wait for
    free boolean;           -- an obstacle is in nobody's hands
    again boolean;
begin
    loop
        -- 1
        select job.run, job.status, job.cancel_settled,
            state.finalizable and job.sealed and job.status <> 'CREATED' as completable,
            (select s.no
             from pyjobs_internal.stage s
             where s.job_id = job.id and s.run = job.run and not s.done
             order by s.no
             limit 1) as stage
        into j
        from pyjobs_internal.job job
        join pyjobs_internal.job_state state on state.status = job.status
        where job.id = advance_job.job_id;

        if j.completable then
            stage_no := j.stage;
        elsif j.status = 'CANCELING' and not advance_job.hand_over then
            stage_no := null;
        else
            return;
        end if;

        if not advance_job.hand_over then
            -- What another has closed and not committed is seen as open still.
            alone := stage_no is not null
                and not pyjobs_internal.obstacle_any(advance_job.job_id, j.run, stage_no);
            if not alone then
                -- 2
                if pyjobs_internal.obstacle_quiet(advance_job.job_id, j.run, stage_no) then
                    return;
                end if;
                -- 3. SKIP LOCKED may wait as well: where a change of the row commits at the very
                -- moment, the server waits for whoever has begun the next one. He may be waiting
                -- for us.
                begin
                    perform set_config('lock_timeout', '20ms', true);
                    free := pyjobs_internal.obstacle_lock(advance_job.job_id, j.run, stage_no,
                        false) is not null;
                    raise exception using errcode = 'PJ0RB';
                exception
                    when sqlstate 'PJ0RB' then
                        if free then
                            return;
                        end if;
                    when lock_not_available then
                        null;
                end;
            end if;
        end if;

        -- Who waits by the rule that held before a cancel may wait for us: he looks by this one
        -- when he has waited.
        if j.status = 'CANCELING' then
            begin
                again := pg_try_advisory_xact_lock_shared(
                    pyjobs_internal.waiting_key(advance_job.job_id));
                raise exception using errcode = 'PJ0RB';
            exception when sqlstate 'PJ0RB' then
                if not again then
                    return;
                end if;
            end;
        end if;

        again := true;
        begin
            -- 4
            if not advance_job.hand_over then
                -- Each rule has an ender of its own. Who was the ender when the cancel came may
                -- have finished looking, by the old rule, and still hold that row to his commit.
                if j.status = 'CANCELING' then
                    perform from pyjobs_internal.history h
                    where h.job_id = advance_job.job_id and h.run = j.run
                        and h.to_status = 'CANCELING'
                    for update skip locked;
                else
                    perform from pyjobs_internal.stage s
                    where s.job_id = advance_job.job_id and s.run = j.run and s.no = 1
                    for update skip locked;
                end if;
                if not found then
                    return;
                end if;
                if alone then
                    null;
                elsif j.status <> 'CANCELING' then
                    perform pyjobs_internal.await_obstacle(advance_job.job_id, j.run, stage_no);
                elsif pyjobs_internal.obstacle_lock(advance_job.job_id, j.run, null, true)
                    is not null
                then
                    raise exception using errcode = 'PJ0RB';
                end if;
                -- 5
                if not alone
                    and pyjobs_internal.obstacle_any(advance_job.job_id, j.run, stage_no)
                then
                    raise exception using errcode = 'PJ0RB';
                end if;
            end if;

            -- 6
            if j.status = 'CANCELING' then
                -- A claim, or items on their way in, may have been in flight at a cancel that did
                -- not settle.
                if not j.cancel_settled
                    and not (pg_try_advisory_xact_lock(pyjobs_internal.intake_key(
                        advance_job.job_id))
                             and pg_try_advisory_xact_lock(pyjobs_internal.serving_key(
                                 advance_job.job_id))
                             and not pyjobs_internal.obstacle_any(advance_job.job_id, j.run, null))
                then
                    again := false;
                    raise exception using errcode = 'PJ0RB';
                end if;
                if not pyjobs_internal.transition_job(advance_job.job_id, 'REVOKED', advance_job.by,
                    'the last lease of a cancelled job is closed') then
                    raise exception using errcode = 'PJ0RB';
                end if;
                return;
            end if;

            completed := advance_job.hand_over;
            while stage_no is not null loop
                if completed and pyjobs_internal.hand_over(advance_job.job_id, j.run, stage_no) then
                    -- A cancel that came while we waited needs somebody who looks by its rule.
                    perform from pyjobs_internal.job job
                    where job.id = advance_job.job_id and job.status = 'CANCELING';
                    if found then
                        raise exception using errcode = 'PJ0RB';
                    end if;
                    return;
                end if;
                stage_no := pyjobs_internal.complete_stage(advance_job.job_id, j.run, stage_no);
                completed := true;
            end loop;

            -- A cancel may have come between the look at the job and here: then its rules hold.
            if not pyjobs_internal.end_complete_job(advance_job.job_id, advance_job.by,
                'the last batch is closed') then
                raise exception using errcode = 'PJ0RB';
            end if;
            return;
        exception when sqlstate 'PJ0RB' then
            if not again then
                return;
            end if;
        end;
    end loop;
end
$$;
