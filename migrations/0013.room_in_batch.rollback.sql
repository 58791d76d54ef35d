-- The server's own setting again.
-- Locks: the table, against vacuum and other changes of it, briefly.
alter table if exists pyjobs_internal.batch reset (fillfactor);
