-- pyjobs_internal.require_result: check what a worker says of a batch, as far as it can be checked
-- without the batch.
--
--   failed    [{"index": whole number from 0, "error": string}, ..], each index once
--   counters  {name: whole number from 0 to 9223372036854775807, ..}
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   record_batch, record_batches, record_and_claim
create or replace function pyjobs_internal.require_result(failed jsonb, counters jsonb)
returns void
language plpgsql
as $$
declare
    bad text;
begin
    if require_result.failed is distinct from '[]'::jsonb then
        if jsonb_typeof(require_result.failed) is distinct from 'array' then
            perform pyjobs_internal.raise_invalid('failed',
                'a JSON array of {"index": .., "error": ..}',
                'a JSON ' || jsonb_typeof(require_result.failed));
        end if;
        select pyjobs_internal.say_json(f.entry) into bad
        from jsonb_array_elements(require_result.failed) f (entry)
        where not coalesce(
            case when jsonb_typeof(f.entry) = 'object' then
                jsonb_typeof(f.entry -> 'index') = 'number'
                    and jsonb_typeof(f.entry -> 'error') = 'string'
                and f.entry - array['index', 'error'] = '{}'
            end, false)
        limit 1;
        if found then
            perform pyjobs_internal.raise_invalid('failed',
                'a JSON array of {"index": whole number from 0, "error": string} and nothing else',
                    bad);
        end if;
        select pyjobs_internal.say_json(f.entry) into bad
        from jsonb_array_elements(require_result.failed) f (entry)
        where (f.entry ->> 'index')::numeric not between 0 and 2147483647
            or (f.entry ->> 'index')::numeric <> trunc((f.entry ->> 'index')::numeric)
        limit 1;
        if found then
            perform pyjobs_internal.raise_invalid('failed',
                'a JSON array whose indexes are whole numbers from 0', bad);
        end if;
        select f.index::text into bad
        from (select (e.entry ->> 'index')::numeric as index
            from jsonb_array_elements(require_result.failed) e (entry)) f
        group by f.index
        having count(*) > 1
        limit 1;
        if found then
            perform pyjobs_internal.raise_invalid('failed',
                'a JSON array that names each index once', format('index %s, twice', bad));
        end if;
    end if;

    if require_result.counters is distinct from '{}'::jsonb then
        if jsonb_typeof(require_result.counters) is distinct from 'object' then
            perform pyjobs_internal.raise_invalid('counters', 'a JSON object of whole numbers',
                'a JSON ' || jsonb_typeof(require_result.counters));
        end if;
        select format('{%s: %s}', to_jsonb(left(c.name, 201)),
            pyjobs_internal.say_json(c.value)) into bad
        from jsonb_each(require_result.counters) c (name, value)
        where c.name = '' or length(c.name) > 200
            or case when jsonb_typeof(c.value) = 'number' then
                    c.value::numeric not between 0 and 9223372036854775807
                        or c.value::numeric <> trunc(c.value::numeric)
               else true end
        limit 1;
        if found then
            perform pyjobs_internal.raise_invalid('counters',
                'a JSON object of names and whole numbers from 0 to 9223372036854775807', bad);
        end if;
    end if;
end
$$;
