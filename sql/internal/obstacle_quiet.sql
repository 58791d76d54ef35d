-- pyjobs_internal.obstacle_quiet: is there an obstacle that nobody is changing? Read without a
-- lock.
--   Obstacles are a stage's open batches; for a job that is being cancelled, the leased batches of
--   its run. A row is quiet where no transaction has touched it since the one that wrote it.
--   Anything else is unsure.
--
--   job_id, run   the job's run
--   stage         the stage's number; null: the leased batches of all stages
-- Returns     true: one is quiet, and whoever closes it will look after us
-- Raises      nothing
-- Locks       nothing
-- Called by   advance_job
create or replace function pyjobs_internal.obstacle_quiet(job_id bigint, run int, stage smallint)
returns boolean
language plpgsql
as $$
begin
    if obstacle_quiet.stage is null then
        perform from pyjobs_internal.batch b
        where b.job_id = obstacle_quiet.job_id and b.run = obstacle_quiet.run and b.state = 'leased'
            and (b.xmax = '0'::xid or b.xmax = b.xmin)
        order by b.job_id, b.run, b.id
        limit 1;
    else
        perform from pyjobs_internal.quiet_batch(obstacle_quiet.job_id, obstacle_quiet.run,
            obstacle_quiet.stage);
    end if;
    return found;
end
$$;
