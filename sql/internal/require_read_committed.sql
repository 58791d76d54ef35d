-- pyjobs_internal.require_read_committed: refuse isolation levels at which the protocol cannot be
-- kept.
--   Each statement of a function must see what committed before it; a snapshot held for the whole
--   transaction would let the last two batches of a job miss each other.
-- Returns     nothing
-- Raises      PJ007 under repeatable read and serializable
-- Locks       nothing
-- Called by   every public function that changes a job that others may change
create or replace function pyjobs_internal.require_read_committed()
returns void
language plpgsql
as $$
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'pyjobs cannot do this in a % transaction',
            current_setting('transaction_isolation')
            using errcode = 'PJ007',
                  detail = 'The end of a job can only be seen by statements that each take a '
                           'snapshot of their own.',
                  hint = 'Use BEGIN ISOLATION LEVEL READ COMMITTED, the default, for this call.';
    end if;
end
$$;
