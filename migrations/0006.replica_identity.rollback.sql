-- Locks: the two tables, exclusively and briefly.
alter table if exists pyjobs_internal.job_start replica identity default;
alter table if exists pyjobs_internal.claim_mark replica identity default;
