-- Drops the types and both schemas. What an application has built on them stops it, and is named.
-- Locks: the types and the schemas, exclusively.
drop type if exists
    pyjobs.worker_stat, pyjobs.queue_stat, pyjobs.history_entry, pyjobs.discrepancy,
    pyjobs.explanation, pyjobs.reaped, pyjobs.finalized_job, pyjobs.lease_state,
    pyjobs.batch_outcome, pyjobs.recorded_and_claimed, pyjobs.recorded_batch, pyjobs.claimed_batch,
    pyjobs.batch_state, pyjobs.job_status;
drop schema if exists pyjobs;
drop schema if exists pyjobs_internal;
