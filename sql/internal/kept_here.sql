-- pyjobs_internal.kept_here: has this transaction handed over to this batch?
--   Then its closer looks after us only if it is not ourselves: who closes it in the same
--   transaction hands over once more, as nobody else sees yet what we changed. Noted in a setting
--   of the transaction, which a rollback to a savepoint takes back with the lock.
--
--   batch_id   the batch
-- Returns     whether it has
-- Raises      nothing
-- Locks       nothing
-- Called by   close_batch, release_batch, expire_leases
create or replace function pyjobs_internal.kept_here(batch_id bigint)
returns boolean
language sql volatile
as $$
    select coalesce(position(format(' %s ', kept_here.batch_id)
        in current_setting('pyjobs.kept', true)) > 0, false)
$$;
