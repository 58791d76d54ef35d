-- pyjobs_internal.obstacle_lock: lock one obstacle that is still open.
--   See obstacle_quiet for what an obstacle is. The caller either rolls the lock back or updates
--   the row: a lock kept without an update could end as a multixact id, which obstacle_quiet might
--   take for quiet.
--
--   job_id, run   the job's run
--   stage         the stage's number; null: the leased batches of all stages
--   wait          false: one that is free; true: wait for those in flight, in turn, until one is
--                 still open
-- Returns     the batch's id; null where none was free, or where all that were waited for have
--             closed
-- Raises      55P03 past the caller's lock_timeout
-- Locks       the batch's row
-- Called by   advance_job, hand_over
create or replace function pyjobs_internal.obstacle_lock(job_id bigint, run int, stage smallint,
    wait boolean)
returns bigint
language plpgsql
as $$
declare
    locked bigint;
begin
    if obstacle_lock.stage is null and obstacle_lock.wait then
        select b.id into locked from pyjobs_internal.batch b
        where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run and b.state = 'leased'
        order by b.job_id, b.run, b.id
        limit 1 for update;
    elsif obstacle_lock.stage is null then
        select b.id into locked from pyjobs_internal.batch b
        where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run and b.state = 'leased'
        order by b.job_id, b.run, b.id
        limit 1 for update skip locked;
    elsif obstacle_lock.wait then
        select b.id into locked from pyjobs_internal.batch b
        where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run
            and b.stage = obstacle_lock.stage
            and b.state in ('pending', 'leased')
        order by b.job_id, b.run, b.stage, (-b.id)
        limit 1 for update;
    else
        -- A pending one first: nobody but a claim wants it, and claims skip what is locked.
        select b.id into locked from pyjobs_internal.batch b
        where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run
            and b.stage = obstacle_lock.stage
            and b.state = 'pending'
        order by b.job_id, b.run, b.stage, b.due_at, b.pos
        limit 1 for update skip locked;
        if locked is null then
            select b.id into locked from pyjobs_internal.batch b
            where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run
                and b.stage = obstacle_lock.stage
                and b.state in ('pending', 'leased')
            order by b.job_id, b.run, b.stage, (-b.id)
            limit 1 for update skip locked;
        end if;
    end if;
    return locked;
end
$$;
