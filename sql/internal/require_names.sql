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
begin
    if require_names.value = '{}' and require_names.may_be_empty then
        return;
    end if;
    if require_names.value is null or coalesce(array_ndims(require_names.value), 0) <> 1
        or cardinality(require_names.value) > 100
        or exists (select from unnest(require_names.value) v (name)
                   where coalesce(v.name, '') = '' or length(v.name) > 200)
        or (cardinality(require_names.value) > 1
            and (select count(distinct v.name)
                from unnest(require_names.value) v (name)) < cardinality(require_names.value))
    then
        perform pyjobs_internal.raise_invalid(require_names.argument, should_be,
            case when pg_column_size(require_names.value) <= 100000
                    and pg_column_compression(require_names.value) is null
                then require_names.value::text
                else format('%s names, too long to be shown',
                    cardinality(require_names.value)) end);
    end if;
end
$$;
