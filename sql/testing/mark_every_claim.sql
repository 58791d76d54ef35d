-- pyjobs_internal.mark_due, always: every claim moves the low-water mark, for tests.
--   Not deployed by a migration. The owner runs this file in a test database.
--
--   first, batches   as there; not looked at
-- Returns     true
-- Raises      nothing
-- Locks       nothing
-- Called by   who calls mark_due, in test databases
create or replace function pyjobs_internal.mark_due(first bigint, batches int)
returns boolean
language sql immutable parallel safe
as $$ select true $$;
