-- pyjobs_internal.stop_serving: take the locks under which a job's batches are claimed, and items
-- added, for ourselves.
--   While we wait new claims already give way: their try fails.
--
--   job_id   the job
--   until    wait no longer than that
-- Returns     true: no claim is in flight, nor items for an unsealed job, until our transaction
--             ends; false: past the bound
-- Raises      nothing
-- Locks       the job's intake lock (where unsealed) and serving lock, exclusively
-- Called by   cancel_job, finalize_job, quarantine_job, resolve_job, retry_job, finish_cancel,
--             revoke_stale
create or replace function pyjobs_internal.stop_serving(job_id bigint, until timestamptz)
returns boolean
language plpgsql
as $$
begin
    perform from pyjobs_internal.job j where j.id = stop_serving.job_id and not j.sealed;
    if found then
        perform pyjobs_internal.bound_wait(stop_serving.until);
        perform pg_advisory_xact_lock(pyjobs_internal.intake_key(stop_serving.job_id));
    end if;
    perform pyjobs_internal.bound_wait(stop_serving.until);
    perform pg_advisory_xact_lock(pyjobs_internal.serving_key(stop_serving.job_id));
    return true;
exception when lock_not_available or deadlock_detected then
    return false;
end
$$;
