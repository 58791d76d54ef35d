-- pyjobs_internal.require_count: check how many batches or jobs are asked for.
--
--   argument   its name
--   value      1 to 1,000,000
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   the claims, enqueue_job
create or replace function pyjobs_internal.require_count(argument text, value int)
returns void
language plpgsql
as $$
begin
    if require_count.value is null or require_count.value not between 1 and 1000000 then
        perform pyjobs_internal.raise_invalid(require_count.argument,
            'a whole number from 1 to 1000000', require_count.value::text);
    end if;
end
$$;
