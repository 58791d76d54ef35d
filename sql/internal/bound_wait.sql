-- pyjobs_internal.bound_wait: let no lock wait of this call go on past a moment.
--
--   until   the moment, in real time
-- Returns     nothing
-- Raises      nothing; the wait itself raises 55P03
-- Locks       nothing
-- Called by   what operators' calls wait in. Their functions carry a SET lock_timeout, so that the
--             caller's own setting comes back when they return
create or replace function pyjobs_internal.bound_wait(until timestamptz)
returns void
language plpgsql
as $$
begin
    perform set_config('lock_timeout',
        greatest(1, extract(epoch from bound_wait.until - clock_timestamp()) * 1000)::int::text,
            true);
end
$$;
