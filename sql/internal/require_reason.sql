-- pyjobs_internal.require_reason: check a free text that may be missing.
--
--   argument   its name
--   value      what came: null, or at most 10,000 characters
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   the public functions that take a reason, an error or a detail
create or replace function pyjobs_internal.require_reason(argument text, value text)
returns void
language plpgsql
as $$
begin
    if length(require_reason.value) > 10000 then
        perform pyjobs_internal.raise_invalid(require_reason.argument,
            'a text of at most 10000 characters',
            format('%s characters long', length(require_reason.value)));
    end if;
end
$$;
