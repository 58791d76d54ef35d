-- pyjobs_internal.expire_leases: take the leases that have run out from their holders.
--   Job by job, ascending, each in a subtransaction: where the last of a job cannot be closed
--   because somebody's transaction is in flight, that job's leases stay as they were for the next
--   reaper. 1,000 jobs at most; the next call goes on.
--
--   until   wait no longer than that
-- Returns     what was done: action expired or failed (attempts used up), postponed for a job left
--             alone
-- Raises      nothing
-- Locks       leased batches, by SKIP LOCKED; then as record_batch for the last
-- Called by   reap, reap_leases
create or replace function pyjobs_internal.expire_leases(until timestamptz)
returns setof pyjobs.reaped
language plpgsql
as $$
declare
    this_moment timestamptz := pyjobs_internal.clock();
    expired_job bigint;
    b record;
    returned record;
    look boolean;
    kept boolean;
    done pyjobs.reaped[];
    jobs int := 0;
begin
    for expired_job in
        select distinct o.job_id from pyjobs_internal.batch o
        where o.state = 'leased' and o.lease_expires_at <= this_moment
        order by o.job_id
    loop
        look := false;
        kept := false;
        done := '{}';
        begin
            perform pyjobs_internal.bound_wait(expire_leases.until);
            for b in
                select o.id, o.lease_epoch, o.attempt, o.worker, o.lease_expires_at
                    from pyjobs_internal.batch o
                where o.job_id = expired_job and o.state = 'leased'
                    and o.lease_expires_at <= this_moment
                order by o.id
                for update skip locked
            loop
                select * into returned from pyjobs_internal.return_batch(b.id, b.lease_epoch,
                    format('lease expired on attempt %s (worker %s)', b.attempt, b.worker), '0');
                look := look or returned.look;
                kept := kept or (returned.look and pyjobs_internal.kept_here(b.id));
                done := done || row(case returned.outcome when 'failed' then 'failed'
                    else 'expired' end, expired_job, b.id,
                    format('worker %s, attempt %s, overdue since %s', b.worker, b.attempt,
                           date_trunc('second', b.lease_expires_at)))::pyjobs.reaped;
            end loop;
            if look then
                perform pyjobs_internal.look_after(expired_job, kept, 'reap');
            end if;
            jobs := jobs + (cardinality(done) > 0)::int;
        exception when lock_not_available or deadlock_detected then
            done := array[row('postponed', expired_job, null,
                'a transaction in flight is in the way')::pyjobs.reaped];
        end;
        return query select * from unnest(done);
        -- Each takes an advisory lock: very many would use up the server's lock table.
        exit when jobs = 1000;
    end loop;
end
$$;
