-- pyjobs_internal.raise_invalid: refuse an argument.
--
--   argument   its name
--   should_be  what it should be, to follow "must be"
--   got        what came; null for a null
-- Returns     nothing
-- Raises      PJ005, always
-- Locks       nothing
-- Called by   every public function
create or replace function pyjobs_internal.raise_invalid(argument text, should_be text, got text)
returns void
language plpgsql
as $$
begin
    raise exception 'argument % must be %', raise_invalid.argument, raise_invalid.should_be
        using errcode = 'PJ005',
              detail = case when raise_invalid.got is null then 'It is null.'
                            else format('It is %s.', left(raise_invalid.got, 200)) end,
              hint = format('Call again with %s %s. Nothing was changed.', raise_invalid.argument,
                  raise_invalid.should_be);
end
$$;
