-- One index of the ledger in place of two: what a stage has, the open batches apart from the
-- closed ones. A batch that is enqueued, emitted or claimed writes one entry less, and new ones
-- come at the end of their part of the index; batch_open, from the highest id down, split every
-- page.
-- The look for an open batch (sql/internal/obstacle_quiet.sql) walks what it did before: the open
-- batches and those that died since the oldest snapshot, from the end. Were the closed not set
-- apart it would walk, at each record, over all that closed above a batch that was left behind:
-- those do not die.
-- Locks: writers of batch while the index is built, about a second for a million rows; then batch,
-- exclusively and briefly. Safe to run twice.
-- depends: 0007.one_check

-- Which batches has this stage, or this job, over all runs? Is anything of this stage open? From
-- the end: the first entries are those that have died.
create index if not exists batch_of_stage on pyjobs_internal.batch (job_id, run, stage,
    (closed_at is null), pos);

drop index if exists pyjobs_internal.batch_open;
drop index if exists pyjobs_internal.batch_of_job;
