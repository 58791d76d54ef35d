-- pyjobs_internal.revoke_stale: the last resort: end the jobs that nobody works although workers
-- ask. 1,000 at most; the next call goes on.
--
--   stale_after  for how long
--   until        wait no longer than that
-- Returns     what was done: action revoked; postponed for a job that could not be ended yet
-- Raises      nothing
-- Locks       as cancel_job, for each; every job in a subtransaction. It is looked at again under
--             the locks
-- Called by   reap
create or replace function pyjobs_internal.revoke_stale(stale_after interval, until timestamptz)
returns setof pyjobs.reaped
language plpgsql
as $$
declare
    j record;
    action text;
    jobs int := 0;
begin
    for j in select s.stale_id, s.why from pyjobs_internal.stale_jobs(
        revoke_stale.stale_after) s loop
        action := 'postponed';
        begin
            if pyjobs_internal.stop_serving(j.stale_id, revoke_stale.until) then
                jobs := jobs + 1;
                perform pyjobs_internal.lock_job(j.stale_id, revoke_stale.until);
                perform from pyjobs_internal.stale_jobs(revoke_stale.stale_after, j.stale_id);
                if found and pyjobs_internal.transition_job(j.stale_id, 'REVOKED', 'reap', 'stale: '
                    || j.why) then
                    action := 'revoked';
                end if;
            end if;
        exception when sqlstate 'PJ006' or lock_not_available or deadlock_detected then
            null;
        end;
        return query select action, j.stale_id, null::bigint, j.why;
        -- Each takes an advisory lock: very many would use up the server's lock table.
        exit when jobs = 1000;
    end loop;
end
$$;
