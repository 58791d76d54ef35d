-- pyjobs.reap: clean up after workers that died and cancels that are overdue.
--   First the expired leases, so that a job it can unstick ends by its threshold; then the jobs
--   being cancelled whose grace is over or that have nothing out; then, only with stale_after, the
--   jobs that nobody works although workers ask for their queue and go away empty, and those set
--   aside and not resolved for 7 days: they become REVOKED. It changes at most 1,000 jobs of each
--   kind in a call; the next goes on.
--
--   stale_after  how long nothing must have happened; 0 to 365 days; null: leave stale jobs alone
--   dry_run      true: say what it would do, and change nothing
-- Returns     action (expired, failed, revoked, or postponed where a transaction in flight is in
--             the way), job_id, batch_id, detail; one row for each
-- Raises      PJ005 bad argument, PJ007 isolation level
-- Locks       as cancel_job and record_batch for the last, job by job; it waits at most 1 second in
--             all
-- Called by   operators
create or replace function pyjobs.reap(stale_after interval default null,
    dry_run boolean default false)
returns setof pyjobs.reaped
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    until constant timestamptz := clock_timestamp() + interval '800 milliseconds';
    done pyjobs.reaped[];
begin
    if reap.stale_after is not null then
        perform pyjobs_internal.require_interval('stale_after', reap.stale_after);
    end if;
    if reap.dry_run is null then
        perform pyjobs_internal.raise_invalid('dry_run', 'true or false', null);
    end if;
    perform pyjobs_internal.require_read_committed();

    begin
        done := array(select row(r.*)::pyjobs.reaped from pyjobs_internal.expire_leases(until) r);
        done := done || array(select row(r.*)::pyjobs.reaped
            from pyjobs_internal.expire_cancels(until) r);
        if reap.stale_after is not null then
            done := done || array(select row(r.*)::pyjobs.reaped
                from pyjobs_internal.revoke_stale(reap.stale_after, until) r);
        end if;
        perform pyjobs_internal.tidy_offer_marks();
        if reap.dry_run then
            raise exception using errcode = 'PJ0RB';
        end if;
    exception when sqlstate 'PJ0RB' then
        null;
    end;
    return query select * from unnest(done);
end
$$;
