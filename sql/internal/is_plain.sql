-- pyjobs_internal.is_plain: is this batch all that its job has (only_batch), and leased?
--   In SQL and stable, so that the server puts it in place of the call; with its limit it is not
--   made a part of a join, whose plan, made without knowing how many are asked for, read the whole
--   table.
--
--   batch_id     the batch
--   lease_epoch  the lease that it is to have
--   succeeded    no item of it has failed
-- Returns     one row: job; plain, whether it is, as things stand; no row where there is no such
--             batch
-- Raises      nothing
-- Locks       nothing
-- Called by   record_batches
create or replace function pyjobs_internal.is_plain(
    batch_id bigint, lease_epoch bigint, succeeded boolean)
returns table (job bigint, plain boolean)
language sql stable rows 1
as $$
    select b.job_id,
        is_plain.succeeded and b.lease_epoch = is_plain.lease_epoch and b.state = 'leased'
        and exists (select from pyjobs_internal.only_batch(b.id, b.job_id, b.run))
    from pyjobs_internal.batch b
    where b.id = is_plain.batch_id
    limit 1
$$;
