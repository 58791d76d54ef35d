-- pyjobs_internal.only_batch: the job, where this batch is all that it has.
--   A simple_job of one batch: nobody else has a batch of it in hand, and whoever records this one
--   waits for nobody. In SQL and stable, so that the server puts it in place of the call.
--
--   batch_id, job_id, run   the batch, and whose it is
-- Returns     the job's id, or no row
-- Raises      nothing
-- Locks       nothing
-- Called by   is_plain
create or replace function pyjobs_internal.only_batch(batch_id bigint, job_id bigint, run int)
returns setof bigint
language sql stable rows 1
as $$
    select only_batch.job_id
    from pyjobs_internal.simple_job(only_batch.job_id, only_batch.run)
    where not exists (
        select from pyjobs_internal.batch o
        where o.job_id = only_batch.job_id and o.run = only_batch.run
            and o.id <> only_batch.batch_id)
$$;
