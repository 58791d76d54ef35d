-- pyjobs_internal.add_counters: the sum of two sets of counters.
--
--   a, b   JSON objects of whole numbers; null counts as none
-- Returns     one JSON object
-- Raises      nothing
-- Locks       nothing
-- Called by   retry_job, move_mark
create or replace function pyjobs_internal.add_counters(a jsonb, b jsonb)
returns jsonb
language sql immutable parallel safe
as $$
    select coalesce(jsonb_object_agg(t.name, t.total), '{}')
    from (select e.name, sum(e.value::text::numeric) as total
          from (select * from jsonb_each(add_counters.a) union all select *
              from jsonb_each(add_counters.b)) e (name, value)
          group by e.name) t
$$;
