-- pyjobs_internal.tidy_offer_marks: remove the marks of offers that are of no more use.
--   Those that have newer ones; those of levels that offer nothing and that nobody has served for
--   a minute; and all of a level that has an offer below its mark, since the clock was set back.
--   Without a mark a level is looked at from its beginning, and nothing is lost.
-- Returns     nothing
-- Raises      nothing
-- Locks       the marks, by SKIP LOCKED
-- Called by   reap
create or replace function pyjobs_internal.tidy_offer_marks()
returns void
language plpgsql
as $$
begin
    delete from pyjobs_internal.offer_mark m
    where m.id = any (array(
        select o.id
        from (
            select distinct on (n.queue, n.priority) n.* from pyjobs_internal.offer_mark n
            order by n.queue, n.priority desc, n.id desc) newest
        cross join lateral (
            select min(f.due_at) as due_at from pyjobs_internal.offer f
            where f.queue = newest.queue and f.priority = newest.priority) first
        join pyjobs_internal.offer_mark o
            on o.queue = newest.queue and o.priority = newest.priority
        where o.id < newest.id or first.due_at < newest.due_at
            or first.due_at is null and newest.seen_at < now() - interval '1 minute'
        for update of o skip locked));
end
$$;
