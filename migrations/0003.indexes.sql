-- The indexes, each with the one question that it answers.
-- Locks: writers of its table while an index is built; on a new database nothing waits. Safe to run
-- twice.
-- depends: 0002.tables

-- What can be claimed in this stage, in order of service?
create index if not exists batch_pending on pyjobs_internal.batch (job_id, run, stage, due_at, pos)
    where state = 'pending';

-- Is anything of this stage open? From the newest: the oldest entries are those that have died.
-- Negated, because a plain "order by id desc" would take the primary key backwards.
create index if not exists batch_open on pyjobs_internal.batch (job_id, run, stage, (-id))
    where state in ('pending', 'leased');

-- What has this job out? What has expired?
create index if not exists batch_leased on pyjobs_internal.batch (job_id, run, id)
    where state = 'leased';

-- Which items failed?
create index if not exists batch_with_failures on pyjobs_internal.batch (job_id, run, stage, id)
    where failed_count > 0;

-- Which batches has this job, over all runs?
create index if not exists batch_of_job on pyjobs_internal.batch (job_id, run, stage, id);

-- Whose turn is it?
create index if not exists offer_turn on pyjobs_internal.offer (queue, priority desc, due_at, id);
create index if not exists offer_of_job on pyjobs_internal.offer (job_id);

create index if not exists job_start_of_job on pyjobs_internal.job_start (job_id, era);

-- One live job for a key.
create unique index if not exists job_dedupe on pyjobs_internal.job (queue, dedupe_key)
    where dedupe_key is not null and finished_at is null;
-- Which jobs of a queue are not final? Which are being cancelled? Which are old enough to purge?
-- Which have that name?
create index if not exists job_live on pyjobs_internal.job (queue, id) where finished_at is null;
create index if not exists job_canceling on pyjobs_internal.job (id) where status = 'CANCELING';
create index if not exists job_finished on pyjobs_internal.job (finished_at)
    where finished_at is not null;
create index if not exists job_name on pyjobs_internal.job (name) where name is not null;

create index if not exists history_of_job on pyjobs_internal.history (job_id, id);
create index if not exists refusal_of_job on pyjobs_internal.refusal (job_id, id);
