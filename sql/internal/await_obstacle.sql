-- pyjobs_internal.await_obstacle: wait until a stage's obstacles in flight have ended, or one of
--   them is open and free. Keeps no lock: the caller looks again.
--   While it waits it holds the job's waiting lock, and it does not begin to wait once the job is
--   being cancelled. So who closes a lease of a cancelled job either finds the lock held, and
--   leaves the job to us, since we look at its status after the wait; or we see the cancel and do
--   not wait for him.
--
--   job_id, run, stage   the stage
-- Returns     nothing
-- Raises      55P03 past the caller's lock_timeout
-- Locks       the job's waiting lock, exclusively, and batches in flight; all is rolled back
-- Called by   advance_job, hand_over
create or replace function pyjobs_internal.await_obstacle(job_id bigint, run int, stage smallint)
returns void
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock(pyjobs_internal.waiting_key(await_obstacle.job_id));
    perform from pyjobs_internal.job j
    where j.id = await_obstacle.job_id and j.status = 'CANCELING';
    if not found then
        perform pyjobs_internal.obstacle_lock(await_obstacle.job_id, await_obstacle.run,
            await_obstacle.stage, true);
    end if;
    raise exception using errcode = 'PJ0RB';
exception when sqlstate 'PJ0RB' then
    return;
end
$$;
