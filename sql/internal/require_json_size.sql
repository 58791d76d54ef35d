-- pyjobs_internal.require_json_size: refuse a JSON value that no worker could be handed.
--   A number like 1e131071 is ten bytes here and 131,072 in the answer to a claim. An answer can
--   hold 1 GB: a batch beyond it would make every claim of its queue fail, again and again.
--
--   argument   its name
--   value      what came; its text is at most 400,000,000 bytes long
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   require_items, enqueue_job
create or replace function pyjobs_internal.require_json_size(argument text, value jsonb)
returns void
language plpgsql
as $$
declare
    size bigint;
begin
    -- No number takes less than 12 bytes: up to here the text cannot be too long, where it did not
    -- come compressed out of somebody's table.
    if pg_column_size(require_json_size.value) <= 30000
        and pg_column_compression(require_json_size.value) is null
    then
        return;
    end if;
    begin
        size := octet_length(require_json_size.value::text);
    exception when program_limit_exceeded then
        size := null;
    end;
    if size is null or size > 400000000 then
        perform pyjobs_internal.raise_invalid(require_json_size.argument,
            'JSON whose text is at most 400000000 bytes long',
            case when size is null then 'longer than a text can be'
                else format('%s bytes long', size) end);
    end if;
end
$$;
