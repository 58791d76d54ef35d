-- Drops the tables: every job is gone.
-- Locks: each table, exclusively.
drop table if exists pyjobs_internal.worker, pyjobs_internal.refusal, pyjobs_internal.history,
    pyjobs_internal.offer,
    pyjobs_internal.batch, pyjobs_internal.stage, pyjobs_internal.job_start, pyjobs_internal.job,
    pyjobs_internal.queue, pyjobs_internal.job_transition, pyjobs_internal.job_state cascade;
drop sequence if exists pyjobs_internal.job_id, pyjobs_internal.batch_id,
    pyjobs_internal.offer_pass;
