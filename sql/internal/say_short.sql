-- pyjobs_internal.say_short: a text from elsewhere (a name, a reason, an error) on one line.
--
--   words     the text; null gives null
--   at_most   characters; what is longer is cut, and ends in ..
-- Returns     the text, each run of white space or control characters as one blank
-- Raises      nothing
-- Locks       nothing
-- Called by   explain_job
create or replace function pyjobs_internal.say_short(words text, at_most int)
returns text
language sql immutable
as $$
    select case
        when length(line.words) <= say_short.at_most then line.words
        else left(line.words, say_short.at_most - 2) || '..'
    end
    from (select btrim(regexp_replace(
              left(say_short.words, 1000), '[\s[:cntrl:]]+', ' ', 'g')) as words) line
$$;
