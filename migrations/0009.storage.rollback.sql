-- The server's own settings again.
-- Locks: each table, against vacuum and other changes of it, briefly.
alter table if exists pyjobs_internal.batch reset (autovacuum_vacuum_scale_factor);
alter table if exists pyjobs_internal.job reset (autovacuum_vacuum_scale_factor);
alter table if exists pyjobs_internal.offer reset (autovacuum_vacuum_scale_factor);
alter table if exists pyjobs_internal.stage reset (autovacuum_vacuum_scale_factor, fillfactor);
