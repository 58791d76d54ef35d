-- pyjobs_internal.move_offer_mark: move the mark of a queue's level up to its first offer.
--   In two steps, so that nobody needs to be kept off. A mark notes when it was made (seen_at, the
--   start of its transaction) and the id of that transaction, which was drawn later. Who writes an
--   offer with an earlier time than seen_at had drawn that time, and before it an id of his own
--   (offer_time): an older one. So once all transactions up to the noted id have ended, whatever
--   has an earlier time than seen_at is there to be seen, and a statement that begins then may
--   move the mark over all that is not, up to seen_at. What a claim in flight is serving is still
--   seen. Until then the mark stays: while somebody's transaction that has written is open.
--   It goes by a clock that is not set back. If it is, offers may come to lie below a mark until
--   the next reap (tidy_offer_marks).
--
--   queue, priority   the level; the caller has just served it
-- Returns     nothing
-- Raises      nothing
-- Locks       nothing; it only adds
-- Called by   claim_from_offers
create or replace function pyjobs_internal.move_offer_mark(queue text, priority int)
returns void
language plpgsql
as $$
declare
    newest record;
    due timestamptz;
    after bigint;
begin
    select m.*, m.xid < pg_snapshot_xmin(pg_current_snapshot()) as over into newest
    from pyjobs_internal.offer_mark m
    where m.queue = move_offer_mark.queue and m.priority = move_offer_mark.priority
    order by m.queue, m.priority desc, m.id desc
    limit 1;
    -- An id that is yet to come is another server's: a dump was restored.
    if not newest.over and newest.xid <= pg_current_xact_id() then
        return;
    end if;
    due := coalesce(newest.due_at, '-infinity');
    after := coalesce(newest.after_id, 0);
    if newest.over and newest.seen_at > due then
        select o.due_at, o.id - 1 into due, after
        from pyjobs_internal.offer o
        where o.queue = move_offer_mark.queue and o.priority = move_offer_mark.priority
            and (o.due_at, o.id) > (newest.due_at, newest.after_id)
            and o.due_at < newest.seen_at
        order by o.queue, o.priority desc, o.due_at, o.id
        limit 1;
        if not found then
            due := newest.seen_at;
            after := 0;
        end if;
    end if;
    insert into pyjobs_internal.offer_mark (queue, priority, due_at, after_id, seen_at, xid)
    values (move_offer_mark.queue, move_offer_mark.priority, due, after, now(),
        pg_current_xact_id());
end
$$;
