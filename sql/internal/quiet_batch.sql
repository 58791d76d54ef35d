-- pyjobs_internal.quiet_batch: an open batch of a stage that nobody is changing. Read without a
-- lock; see obstacle_quiet.
--   In SQL and stable, so that the server puts it in place of the call: who records looks with it
--   in a statement that reads the job as well.
--
--   job_id, run, stage   the stage
-- Returns     one batch's id, or no row
-- Raises      nothing
-- Locks       nothing
-- Called by   close_batch, obstacle_quiet
create or replace function pyjobs_internal.quiet_batch(job_id bigint, run int, stage smallint)
returns setof bigint
language sql stable rows 1
as $$
    select b.id
    from pyjobs_internal.batch b
    where b.job_id = quiet_batch.job_id and b.run = quiet_batch.run
        and b.stage = quiet_batch.stage
        and b.closed_at is null
        and (b.xmax = '0'::xid or b.xmax = b.xmin)
    order by b.pos desc
    limit 1
$$;
