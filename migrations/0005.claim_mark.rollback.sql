-- Claims look at each stage from its beginning again: nothing is lost.
-- Locks: the table, exclusively and briefly.
drop table if exists pyjobs_internal.claim_mark;
