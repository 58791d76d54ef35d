-- pyjobs_internal.is_plain: is this batch all that its job has (only_batch), and leased?
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
        and exists (select from pyjobs_internal.only_batch(b.id, b.job_id, b.run))
    into job, plain
    from pyjobs_internal.batch b
    where b.id = is_plain.batch_id;
    plain := coalesce(plain, false);
end
$$;
