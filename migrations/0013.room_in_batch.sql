-- Room for a batch's next version on its own page.
-- A claim, an extension and a record each write a batch's row anew. On a full page the new version
-- goes to another one: the log then holds the whole row with its items and the lock of the old one,
-- all indexes get an entry, and after a checkpoint there is one more whole page. With a fifth of
-- each page left free the log holds what has changed, an extension writes to no index, since it
-- changes nothing that is in one, and what the old version took is the room for the next.
-- Log: on a page that is full a record writes 34 % less, an extension 82 %; a plain job from its
-- beginning to its end 1 to 7 %, a batch of twenty items 5 to 50 %, most where the last checkpoint
-- is near. Size: the same or less, but for rows of more than 1.6 kB, of which three lie on a page
-- in place of four.
-- The row of a job is written anew once, which does not pay for the room.
-- Locks: the table, against vacuum and other changes of it (SHARE UPDATE EXCLUSIVE), briefly;
-- neither readers nor writers wait. The rows that are there stay where they are. What an operator
-- has set stays. Safe to run twice.
-- depends: 0011.offer_mark

do $$
begin
    if not exists (
        select from pg_catalog.pg_class c
        where c.oid = 'pyjobs_internal.batch'::regclass
            and c.reloptions::text like '%fillfactor=%')
    then
        alter table pyjobs_internal.batch set (fillfactor = 80);
    end if;
end
$$;
