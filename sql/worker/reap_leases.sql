-- pyjobs.reap_leases: what workers do now and then: reap the expired leases and the overdue
-- cancels. As reap without
--   stale_after.
-- Returns     as reap
-- Raises      PJ007 isolation level
-- Locks       as reap; it waits at most 1 second in all
-- Called by   workers
create or replace function pyjobs.reap_leases()
returns setof pyjobs.reaped
language sql security definer set search_path = pg_catalog, pg_temp
as $$ select * from pyjobs.reap() $$;
