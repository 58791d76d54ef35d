-- The roles stay: other databases of this server may use them. An administrator drops them by
-- DROP ROLE pyjobs_producer, pyjobs_worker, pyjobs_operator, pyjobs_reader.
-- Locks: nothing.
select 1;
