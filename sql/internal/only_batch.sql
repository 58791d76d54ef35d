-- pyjobs_internal.only_batch: the job, where this batch is all that it has.
--   A sealed job of one stage and one batch: nothing can come to it, nobody else has a batch of it
--   in hand, and whoever records this one waits for nobody. Not where this transaction has handed
--   over to a batch (kept_here). In SQL and stable, so that the server puts it in place of the
--   call.
--
--   batch_id, job_id, run   the batch, and whose it is
-- Returns     the job's id, or no row
-- Raises      nothing
-- Locks       nothing
-- Called by   is_plain, end_plain
create or replace function pyjobs_internal.only_batch(batch_id bigint, job_id bigint, run int)
returns setof bigint
language sql stable rows 1
as $$
    select j.id
    from pyjobs_internal.job j
    where j.id = only_batch.job_id and j.run = only_batch.run and j.sealed
        and (select s.claimable from pyjobs_internal.job_state s where s.status = j.status)
        and not exists (
            select from pyjobs_internal.stage s
            where s.job_id = only_batch.job_id and s.run = only_batch.run and s.no > 1)
        and not exists (
            select from pyjobs_internal.batch o
            where o.job_id = only_batch.job_id and o.run = only_batch.run
                and o.id <> only_batch.batch_id)
        and coalesce(current_setting('pyjobs.kept', true), '') = ''
$$;
