-- pyjobs_internal.require_text: check a name-like argument.
--
--   argument   its name
--   value      what came: not null, not empty, at most 200 characters
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   every public function that takes a queue, worker, stage or key
create or replace function pyjobs_internal.require_text(argument text, value text)
returns void
language plpgsql
as $$
begin
    if coalesce(require_text.value, '') = '' or length(require_text.value) > 200 then
        perform pyjobs_internal.raise_invalid(require_text.argument,
            'a text of 1 to 200 characters', left(require_text.value, 201));
    end if;
end
$$;
