-- pyjobs_internal.require_names: check an array of names.
--
--   argument   its name
--   value      what came: one dimension, 1 to 100 names of 1 to 200 characters, none null, none
--              twice
--   may_be_empty  whether no name at all will do
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   the public functions that take queues, stages or barriers
create or replace function pyjobs_internal.require_names(argument text, value text[],
    may_be_empty boolean default false)
returns void
language plpgsql
as $$
declare
    should_be constant text := 'an array of 1 to 100 different names of 1 to 200 characters';
    fits boolean;
    name text;
begin
    if require_names.value = '{}' and require_names.may_be_empty then
        return;
    end if;
    fits := coalesce(array_ndims(require_names.value), 0) = 1
        and cardinality(require_names.value) <= 100;
    if fits then
        -- The one name that most give costs no query.
        foreach name in array require_names.value loop
            fits := fits and coalesce(length(name) between 1 and 200, false);
        end loop;
        if cardinality(require_names.value) > 1 then
            fits := fits and (select count(distinct v.name)
                from unnest(require_names.value) v (name)) = cardinality(require_names.value);
        end if;
    end if;
    if not fits then
        perform pyjobs_internal.raise_invalid(require_names.argument, should_be,
            case when pg_column_size(require_names.value) <= 100000
                    and pg_column_compression(require_names.value) is null
                then require_names.value::text
                else format('%s names, too long to be shown',
                    cardinality(require_names.value)) end);
    end if;
end
$$;
