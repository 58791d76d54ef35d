-- pyjobs_internal.is_plain: is this batch all that its job has?
--   A sealed job of one stage and one batch, and that is leased: nothing can come to it, nobody
--   else has a batch of it in hand, and whoever records it waits for nobody.
--
--   batch_id     the batch
--   lease_epoch  the lease that it is to have
--   succeeded    no item of it has failed
-- Returns     one row: job, null where there is no such batch; plain, whether it is, as things
--             stand
-- Raises      nothing
-- Locks       nothing
-- Called by   record_batches
create or replace function pyjobs_internal.is_plain(
    batch_id bigint, lease_epoch bigint, succeeded boolean,
    out job bigint, out plain boolean)
language plpgsql
as $$
begin
    select b.job_id,
        is_plain.succeeded and b.lease_epoch = is_plain.lease_epoch and b.state = 'leased'
        and state.claimable and j.sealed
        and not exists (
            select from pyjobs_internal.stage s
            where s.job_id = b.job_id and s.run = b.run and s.no > 1)
        and not exists (
            select from pyjobs_internal.batch o
            where o.job_id = b.job_id and o.run = b.run and o.id <> b.id)
    into job, plain
    from pyjobs_internal.batch b
    join pyjobs_internal.job j on j.id = b.job_id and j.run = b.run
    join pyjobs_internal.job_state state on state.status = j.status
    where b.id = is_plain.batch_id;
    plain := coalesce(plain, false)
        and coalesce(current_setting('pyjobs.kept', true), '') = '';
end
$$;
