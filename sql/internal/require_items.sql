-- pyjobs_internal.require_items: check a JSON array of items.
--
--   argument   its name
--   items      what came: a JSON array of at most 10,000,000 items, its text of at most 400 MB
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   enqueue_job, enqueue_jobs, add_items, record_batch
create or replace function pyjobs_internal.require_items(argument text, items jsonb)
returns void
language plpgsql
as $$
begin
    if jsonb_typeof(require_items.items) is distinct from 'array' then
        perform pyjobs_internal.raise_invalid(require_items.argument, 'a JSON array',
            coalesce('a JSON ' || jsonb_typeof(require_items.items), null));
    end if;
    if jsonb_array_length(require_items.items) > 10000000 then
        perform pyjobs_internal.raise_invalid(require_items.argument,
            'a JSON array of at most 10000000 items',
            format('%s items long', jsonb_array_length(require_items.items)));
    end if;
    perform pyjobs_internal.require_json_size(require_items.argument, require_items.items);
end
$$;
