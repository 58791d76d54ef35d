-- pyjobs_internal.hand_over: see to it that somebody looks after a change of what counts as an
-- obstacle.
--   Keeps one obstacle to the end of our transaction, so that its closer waits for us and then sees
--   what we changed. Where all are in flight it waits for one.
--
--   job_id, run   the job's run
--   stage         the stage's number; null: the leased batches of all stages
-- Returns     true: one is kept; false: there is none, and what they stood in the way of can be
--             done now
-- Raises      PJ0RB where a stage is handed over and a cancel came while it waited: the caller
--             rolls back and looks again; 55P03 past the caller's lock_timeout
-- Locks       one batch's row, to the end of the transaction; noted in the setting pyjobs.kept
-- Called by   advance_job, cancel_job
create or replace function pyjobs_internal.hand_over(job_id bigint, run int, stage smallint)
returns boolean
language plpgsql
as $$
declare
    kept bigint;
begin
    loop
        kept := pyjobs_internal.obstacle_lock(hand_over.job_id, hand_over.run, hand_over.stage,
            false);
        if kept is null then
            if not pyjobs_internal.obstacle_any(hand_over.job_id, hand_over.run,
                hand_over.stage) then
                return false;
            end if;
            if hand_over.stage is null then
                kept := pyjobs_internal.obstacle_lock(hand_over.job_id, hand_over.run, null, true);
            else
                perform pyjobs_internal.await_obstacle(hand_over.job_id, hand_over.run,
                    hand_over.stage);
                -- Cancelled meanwhile: other rules hold.
                perform from pyjobs_internal.job j
                where j.id = hand_over.job_id and j.status = 'CANCELING';
                if found then
                    raise exception using errcode = 'PJ0RB';
                end if;
            end if;
        end if;
        if kept is not null then
            update pyjobs_internal.batch b set error = b.error where b.id = kept;
            -- Where this transaction closes that one itself nobody waits for us: see kept_here.
            perform set_config('pyjobs.kept',
                concat(nullif(current_setting('pyjobs.kept', true), ''), ' ', kept, ' '), true);
            return true;
        end if;
    end loop;
end
$$;
