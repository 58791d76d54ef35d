-- pyjobs_internal.expire_cancels: end the jobs that are being cancelled and whose grace is over, or
-- that have nothing out. 1,000 at most; the next call goes on.
--
--   until   wait no longer than that
-- Returns     what was done: action revoked; postponed for a job that could not be ended yet
-- Raises      nothing
-- Locks       as cancel_job, for each; every job in a subtransaction
-- Called by   reap, reap_leases
create or replace function pyjobs_internal.expire_cancels(until timestamptz)
returns setof pyjobs.reaped
language plpgsql
as $$
declare
    j record;
    ended boolean;
    jobs int := 0;
begin
    for j in
        select o.id, o.run, o.cancel_deadline from pyjobs_internal.job o
            where o.status = 'CANCELING' order by o.id
    loop
        if j.cancel_deadline > pyjobs_internal.clock() and pyjobs_internal.obstacle_any(j.id, j.run,
            null) then
            continue;
        end if;
        begin
            ended := pyjobs_internal.finish_cancel(j.id, 'reap', expire_cancels.until);
            jobs := jobs + 1;
        exception when sqlstate 'PJ006' or lock_not_available or deadlock_detected then
            ended := false;
        end;
        return query select case when ended then 'revoked' else 'postponed' end, j.id, null::bigint,
            case when ended then format('cancelled, grace until %s', date_trunc('second',
                j.cancel_deadline))
                 else 'cancelled; a transaction in flight is in the way' end;
        -- Each takes an advisory lock: very many would use up the server's lock table.
        exit when jobs = 1000;
    end loop;
end
$$;
