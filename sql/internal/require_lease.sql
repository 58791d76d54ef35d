-- pyjobs_internal.require_lease: check how long a lease is to last.
--
--   lease   more than 0, at most 1 day
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   the claims and extend_lease
create or replace function pyjobs_internal.require_lease(lease interval)
returns void
language plpgsql
as $$
begin
    if require_lease.lease is null or require_lease.lease <= interval '0'
        or require_lease.lease > interval '1 day' then
        perform pyjobs_internal.raise_invalid('lease',
            'an interval of more than 0 and at most 1 day', require_lease.lease::text);
    end if;
end
$$;
