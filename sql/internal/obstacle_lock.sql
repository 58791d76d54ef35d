-- pyjobs_internal.obstacle_lock: lock one obstacle that is still open.
--   See obstacle_quiet for what an obstacle is. The caller either rolls the lock back or updates
--   the row: a lock kept without an update could end as a multixact id, which obstacle_quiet might
--   take for quiet.
--
--   job_id, run   the job's run
--   stage         the stage's number; null: the leased batches of all stages
--   wait          false: one that is free; true: wait for those in flight, in turn, until one is
--                 still open; a lock_timeout that is set bounds all these waits together
-- Returns     the batch's id; null where none was free, or where all that were waited for have
--             closed
-- Raises      55P03 past the caller's lock_timeout
-- Locks       the batch's row
-- Called by   advance_job, await_obstacle, fence_leases, hand_over
create or replace function pyjobs_internal.obstacle_lock(job_id bigint, run int, stage smallint,
    wait boolean)
returns bigint
language plpgsql
as $$
declare
    wanted bigint;
    locked bigint;
    bound text;
    until timestamptz;
begin
    if obstacle_lock.wait then
        bound := current_setting('lock_timeout');
        until := clock_timestamp() + nullif(bound::interval, interval '0');
        -- One statement a wait: within one each wait would have the whole of the bound.
        loop
            if obstacle_lock.stage is null then
                select b.id into wanted from pyjobs_internal.batch b
                where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run
                    and b.state = 'leased'
                order by b.job_id, b.run, b.id
                limit 1;
            else
                select b.id into wanted from pyjobs_internal.batch b
                where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run
                    and b.stage = obstacle_lock.stage
                    and b.closed_at is null
                order by b.pos desc
                limit 1;
            end if;
            exit when wanted is null;
            if until is not null then
                perform pyjobs_internal.bound_wait(until);
            end if;
            select b.id into locked from pyjobs_internal.batch b
            where b.id = wanted
                and (b.state = 'leased' or b.state = 'pending' and obstacle_lock.stage is not null)
            for update;
            exit when locked is not null;
        end loop;
        if until is not null then
            perform set_config('lock_timeout', bound, true);
        end if;
    elsif obstacle_lock.stage is null then
        select b.id into locked from pyjobs_internal.batch b
        where b.job_id = obstacle_lock.job_id and b.run = obstacle_lock.run and b.state = 'leased'
        order by b.job_id, b.run, b.id
        limit 1 for update skip locked;
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
                and b.closed_at is null
            order by b.pos desc
            limit 1 for update skip locked;
        end if;
    end if;
    return locked;
end
$$;
