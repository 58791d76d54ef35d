-- pyjobs_internal.say_count: a number of things for people.
--
--   n       how many; counting stopped above 10,000
--   thing   what, in the singular
-- Returns     "1 job", "3 batches", "over 10000 batches"
-- Raises      nothing
-- Locks       nothing
-- Called by   explain_job
create or replace function pyjobs_internal.say_count(n bigint, thing text)
returns text
language sql immutable
as $$
    select format('%s %s',
        case when say_count.n > 10000 then 'over 10000' else say_count.n::text end,
        case
            when say_count.n = 1 then say_count.thing
            when say_count.thing like '%ch' then say_count.thing || 'es'
            else say_count.thing || 's'
        end)
$$;
