-- pyjobs_internal.obstacle_any: is there any obstacle at all, in flight or not?
--   See obstacle_quiet for what an obstacle is.
--
--   job_id, run   the job's run
--   stage         the stage's number; null: the leased batches of all stages
-- Returns     whether there is one
-- Raises      nothing
-- Locks       nothing
-- Called by   advance_job, hand_over
create or replace function pyjobs_internal.obstacle_any(job_id bigint, run int, stage smallint)
returns boolean
language plpgsql
as $$
begin
    if obstacle_any.stage is null then
        perform from pyjobs_internal.batch b
        where b.job_id = obstacle_any.job_id and b.run = obstacle_any.run and b.state = 'leased'
        order by b.job_id, b.run, b.id
        limit 1;
    else
        perform from pyjobs_internal.batch b
        where b.job_id = obstacle_any.job_id and b.run = obstacle_any.run
            and b.stage = obstacle_any.stage
            and b.closed_at is null
        order by b.pos desc
        limit 1;
    end if;
    return found;
end
$$;
