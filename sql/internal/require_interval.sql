-- pyjobs_internal.require_interval: check how long something is to take or to wait.
--
--   argument   its name
--   value      0 to 365 days
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   release_batch, cancel_job, reap
create or replace function pyjobs_internal.require_interval(argument text, value interval)
returns void
language plpgsql
as $$
begin
    if require_interval.value is null or require_interval.value < interval '0'
        or require_interval.value > interval '365 days' then
        perform pyjobs_internal.raise_invalid(require_interval.argument,
            'an interval from 0 to 365 days', require_interval.value::text);
    end if;
end
$$;
