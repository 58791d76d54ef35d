-- pyjobs_internal.say_json: a JSON value that was refused, for the refusal.
--   The text of a large value may be longer than any text can be.
--
--   value   the value; null gives null
-- Returns     its text, or where that may be long its kind and size
-- Raises      nothing
-- Locks       nothing
-- Called by   the checks of arguments, job_progress
create or replace function pyjobs_internal.say_json(value jsonb)
returns text
language sql stable
as $$
    select case
        when pg_column_size(say_json.value) <= 6000
            and pg_column_compression(say_json.value) is null
        then left(say_json.value::text, 200)
        else format('a JSON %s of %s bytes', jsonb_typeof(say_json.value),
            pg_column_size(say_json.value))
    end
$$;
