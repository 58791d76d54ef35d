-- The two indexes that were there before.
-- Locks: batch, exclusively, while the indexes are built.
drop index if exists pyjobs_internal.batch_of_stage;
create index if not exists batch_open on pyjobs_internal.batch (job_id, run, stage, (-id))
    where state in ('pending', 'leased');
create index if not exists batch_of_job on pyjobs_internal.batch (job_id, run, stage, id);
