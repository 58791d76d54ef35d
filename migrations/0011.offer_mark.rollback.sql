-- Claims look at each queue from its beginning again: nothing is lost.
-- Locks: the table, exclusively and briefly.
drop table if exists pyjobs_internal.offer_mark;
