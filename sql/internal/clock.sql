-- pyjobs_internal.clock: the time that leases, graces and schedules go by.
--   Within one transaction it moves on: now() would stand at the transaction's start. Tests put
--   another body here (sql/testing/settable_clock.sql); only the owner can.
-- Returns     the time
-- Raises      nothing
-- Locks       nothing
-- Called by   everything in pyjobs that needs the time
create or replace function pyjobs_internal.clock()
returns timestamptz
language sql volatile parallel safe
as $$ select clock_timestamp() $$;
