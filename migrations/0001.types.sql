-- Schemas, and the types that the interface shows.
-- Locks: nothing that exists; it only adds. Safe to run twice.
-- depends:

create schema if not exists pyjobs;
create schema if not exists pyjobs_internal;

comment on schema pyjobs is
    'The interface: functions, their result types, the views job and batch.';
comment on schema pyjobs_internal is
    'Storage and helpers of pyjobs. Private: no role but the owner reaches it.';

do $$
begin
    if to_regtype('pyjobs.job_status') is null then
        create type pyjobs.job_status as enum
            ('CREATED', 'PENDING', 'STARTED', 'RETRY', 'CANCELING', 'UNKNOWN', 'SUCCESS', 'FAILURE',
                'REVOKED');
    end if;

    -- pending: waits for a worker. leased: one worker has it. recorded: its result counts.
    -- failed: its attempts are used up, all its items count as failed.
    if to_regtype('pyjobs.batch_state') is null then
        create type pyjobs.batch_state as enum ('pending', 'leased', 'recorded', 'failed');
    end if;

    -- One leased batch, as every claim returns it.
    if to_regtype('pyjobs.claimed_batch') is null then
        create type pyjobs.claimed_batch as (
            job_id bigint, run int, batch_id bigint, lease_epoch bigint, attempt int, queue text,
                stage text,
            params jsonb, items jsonb, lease_expires_at timestamptz);
    end if;

    -- record_batch
    if to_regtype('pyjobs.recorded_batch') is null then
        create type pyjobs.recorded_batch as (
            job_id bigint, job_status pyjobs.job_status, stage_done boolean, job_done boolean);
    end if;

    -- record_and_claim
    if to_regtype('pyjobs.recorded_and_claimed') is null then
        create type pyjobs.recorded_and_claimed as (
            job_id bigint, run int, batch_id bigint, lease_epoch bigint, attempt int, queue text,
                stage text,
            params jsonb, items jsonb, lease_expires_at timestamptz,
                recorded_status pyjobs.job_status);
    end if;

    -- record_batches: outcome is recorded, already or stale
    if to_regtype('pyjobs.batch_outcome') is null then
        create type pyjobs.batch_outcome as (batch_id bigint, outcome text);
    end if;

    -- extend_lease
    if to_regtype('pyjobs.lease_state') is null then
        create type pyjobs.lease_state as (lease_expires_at timestamptz,
            job_status pyjobs.job_status);
    end if;

    -- finalize_job
    if to_regtype('pyjobs.finalized_job') is null then
        create type pyjobs.finalized_job as (transitioned boolean, status pyjobs.job_status);
    end if;

    -- reap, reap_leases
    if to_regtype('pyjobs.reaped') is null then
        create type pyjobs.reaped as (action text, job_id bigint, batch_id bigint, detail text);
    end if;

    -- explain_job
    if to_regtype('pyjobs.explanation') is null then
        create type pyjobs.explanation as (finding text, evidence text, remedy text);
    end if;

    -- audit_job
    if to_regtype('pyjobs.discrepancy') is null then
        create type pyjobs.discrepancy as (job_id bigint, stage text, what text, recorded text,
            recomputed text);
    end if;

    -- job_history
    if to_regtype('pyjobs.history_entry') is null then
        create type pyjobs.history_entry as (
            at timestamptz, run int, from_status pyjobs.job_status, to_status pyjobs.job_status,
            session_role text, by text, reason text);
    end if;

    -- queue_stats
    if to_regtype('pyjobs.queue_stat') is null then
        create type pyjobs.queue_stat as (
            queue text, paused boolean, waiting_jobs bigint, running_jobs bigint,
                pending_batches bigint,
            leased_batches bigint, oldest_waiting timestamptz, workers bigint);
    end if;

    -- active_workers
    if to_regtype('pyjobs.worker_stat') is null then
        create type pyjobs.worker_stat as (
            worker text, queues text[], last_seen timestamptz, leased_batches bigint);
    end if;
end
$$;
