-- pyjobs_internal.transition_job: the one guarded transition. Cancel, reap, finalize, quarantine,
-- resolve, release and the
--   last batch all go through it: one statement that fires only from a state that allows it.
--
--   job_id     the job
--   to_status  where it is to go
--   by         who does it: a worker's name, or the call
--   reason     why; may be null
-- Returns     whether it went there; false: its state (read afresh, under its lock) does not allow
--             it
-- Raises      nothing of its own
-- Locks       the job's row, to the end of the transaction
-- Called by   advance_job and the operators' functions
create or replace function pyjobs_internal.transition_job(
    job_id bigint, to_status pyjobs.job_status, by text, reason text)
returns boolean
language plpgsql
as $$
declare
    seen record;
    from_seen pyjobs.job_status;
    ends boolean;
    changed pyjobs_internal.job;
begin
    select j.status, j.era, s.final into seen
    from pyjobs_internal.job j
    join pyjobs_internal.job_state s on s.status = transition_job.to_status
    where j.id = transition_job.job_id
    for update of j;
    from_seen := pyjobs_internal.effective_status(seen.status, transition_job.job_id, seen.era);
    ends := seen.final;

    update pyjobs_internal.job j
    set status = transition_job.to_status,
        era = j.era + (transition_job.to_status = 'RETRY')::int,
        cancel_deadline = case when transition_job.to_status = 'CANCELING'
            then pyjobs_internal.clock() end,
        finished_at = case when ends then pyjobs_internal.clock() end,
        finished_by = case when ends then transition_job.by end,
        finished_role = case when ends then session_user end,
        finished_from = case when ends then from_seen end,
        finished_reason = case when ends then transition_job.reason end
    where j.id = transition_job.job_id
        and exists (select from pyjobs_internal.job_transition t
                    where t.from_status = from_seen and t.to_status = transition_job.to_status)
    returning j.* into changed;

    if changed.id is null then
        return false;
    end if;
    if not ends then
        insert into pyjobs_internal.history (job_id, at, run, from_status, to_status, session_role,
            by, reason)
        values (changed.id, pyjobs_internal.clock(), changed.run, from_seen,
            transition_job.to_status, session_user,
                transition_job.by, transition_job.reason);
    end if;
    return true;
end
$$;
