-- Drops both schemas with all that is in them: every job is gone.
-- Locks: everything in both schemas, exclusively.
drop schema if exists pyjobs cascade;
drop schema if exists pyjobs_internal cascade;
