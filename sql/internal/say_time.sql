-- pyjobs_internal.say_time: a time for people, as short as it can be told apart.
--
--   at       the time
--   at_now   the present
-- Returns     the time of day where it is today, else with its date; in the session's time zone
-- Raises      nothing
-- Locks       nothing
-- Called by   explain_job
create or replace function pyjobs_internal.say_time(at timestamptz, at_now timestamptz)
returns text
language sql stable
as $$
    select to_char(say_time.at, case
        when say_time.at::date = say_time.at_now::date then 'HH24:MI:SS'
        else 'YYYY-MM-DD HH24:MI'
    end)
$$;
