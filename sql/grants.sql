-- Who may call what: the only place that says so. Run again after every deployment of functions,
-- because a function that was dropped and made anew has lost its grants, and one that was replaced
-- has kept old ones. Nobody but the owner reaches a table; the two relations and pyjobs.refused are
-- for readers and operators. Locks: the catalogue rows of what it grants. Safe to run again.
-- The owner's default privileges may have opened them.
revoke all on schema pyjobs, pyjobs_internal, pyjobs_deploy from public;
revoke all on all tables in schema pyjobs_deploy
    from public, pyjobs_producer, pyjobs_worker, pyjobs_operator, pyjobs_reader;
revoke all on schema pyjobs_internal from pyjobs_producer, pyjobs_worker, pyjobs_operator,
    pyjobs_reader;
revoke all on all tables in schema pyjobs, pyjobs_internal
    from public, pyjobs_producer, pyjobs_worker, pyjobs_operator, pyjobs_reader;
revoke all on all sequences in schema pyjobs_internal
    from public, pyjobs_producer, pyjobs_worker, pyjobs_operator, pyjobs_reader;
revoke all on all functions in schema pyjobs, pyjobs_internal
    from public, pyjobs_producer, pyjobs_worker, pyjobs_operator, pyjobs_reader;

grant usage on schema pyjobs to pyjobs_producer, pyjobs_worker, pyjobs_operator, pyjobs_reader;

-- Producers, and operators, who may do all that needs no lease.
grant execute on function
    pyjobs.enqueue_job, pyjobs.enqueue_jobs, pyjobs.add_items, pyjobs.seal_job, pyjobs.release_job
to pyjobs_producer, pyjobs_operator;

grant execute on function
    pyjobs.claim_next_job, pyjobs.claim_next_batch, pyjobs.claim_jobs, pyjobs.record_batch,
        pyjobs.record_and_claim,
    pyjobs.record_batches, pyjobs.extend_lease, pyjobs.release_batch, pyjobs.report_refused
to pyjobs_worker;

grant execute on function pyjobs.reap_leases to pyjobs_worker, pyjobs_operator;

grant execute on function
    pyjobs.cancel_job, pyjobs.finalize_job, pyjobs.retry_job, pyjobs.quarantine_job,
        pyjobs.resolve_job, pyjobs.pause_job,
    pyjobs.resume_job, pyjobs.pause_queue, pyjobs.resume_queue, pyjobs.set_priority, pyjobs.reap,
        pyjobs.purge_jobs
to pyjobs_operator;

grant execute on function pyjobs.job_progress to pyjobs_producer, pyjobs_worker, pyjobs_operator,
    pyjobs_reader;

grant execute on function
    pyjobs.explain_job, pyjobs.audit_job, pyjobs.job_history, pyjobs.queue_stats,
        pyjobs.active_workers
to pyjobs_reader, pyjobs_operator;

grant select on pyjobs.job, pyjobs.batch, pyjobs.refused to pyjobs_reader, pyjobs_operator;
