-- What has no key of its own is told apart by all of its columns where the database is replicated
-- logically: with a publication of all tables its rows could not be deleted, and so the last batch
-- of a large job not be recorded. Costs nothing where nothing is published.
-- Locks: the two tables, exclusively and briefly. Safe to run twice.
-- depends: 0005.claim_mark

alter table pyjobs_internal.job_start replica identity full;
alter table pyjobs_internal.claim_mark replica identity full;
