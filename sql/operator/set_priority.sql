-- pyjobs.set_priority: change whose turn comes first. At a new priority the job comes last.
--
--   job_id    the job; not final
--   priority  higher first
-- Returns     the job's status, which this does not change
-- Raises      PJ004 no such job, PJ005 null, PJ006 it is final, or somebody holds its row, PJ007
--             isolation level
-- Locks       the job's row, its offers; it waits at most 1 second
-- Called by   operators
create or replace function pyjobs.set_priority(job_id bigint, priority int)
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    until constant timestamptz := clock_timestamp() + interval '800 milliseconds';
    j pyjobs_internal.job;
begin
    if set_priority.priority is null then
        perform pyjobs_internal.raise_invalid('priority', 'a whole number', null);
    end if;
    -- An old snapshot would not show the offers that were made since.
    perform pyjobs_internal.require_read_committed();
    j := pyjobs_internal.lock_job(set_priority.job_id, until);
    perform pyjobs_internal.refuse_final(j);
    begin
        update pyjobs_internal.job o set priority = set_priority.priority where o.id = j.id;
        perform pyjobs_internal.bound_wait(until);
        -- At the end of its new level: below that one's mark it would not be found.
        update pyjobs_internal.offer o
        set priority = set_priority.priority,
            due_at = case when o.priority = set_priority.priority then o.due_at
                else greatest(o.due_at, pyjobs_internal.offer_time()) end
        where o.job_id = j.id;
    exception when lock_not_available or deadlock_detected then
        perform pyjobs_internal.raise_in_the_way(j.id, true);
    end;
    return pyjobs_internal.status_of(j.id);
end
$$;
