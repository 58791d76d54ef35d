-- Locks: each index's table, exclusively and briefly.
drop index if exists pyjobs_internal.batch_pending, pyjobs_internal.batch_open,
    pyjobs_internal.batch_leased,
    pyjobs_internal.batch_with_failures, pyjobs_internal.batch_of_job, pyjobs_internal.offer_turn,
    pyjobs_internal.offer_of_job, pyjobs_internal.job_start_of_job, pyjobs_internal.job_dedupe,
    pyjobs_internal.job_live, pyjobs_internal.job_canceling, pyjobs_internal.job_finished,
        pyjobs_internal.job_name,
    pyjobs_internal.history_of_job, pyjobs_internal.refusal_of_job;
