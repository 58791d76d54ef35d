-- pyjobs.finalize_job: end a job: one that is complete by what it is, another by force.
--
--   job_id  the job
--   status  null: end it only if it is complete, by its threshold; SUCCESS, FAILURE or REVOKED: end
--           it so, from a finalizable state, and fence its leases
--   reason  why, for the history; may be null
-- Returns     transitioned (whether this call ended it), status (as it is now)
-- Raises      PJ003 forced from CANCELING or UNKNOWN, PJ004 no such job, PJ005 bad argument, PJ006
--             transactions in flight are in the way, PJ007 isolation level
-- Locks       forced: as cancel_job; else the job's row. It waits at most 1 second
-- Called by   operators
create or replace function pyjobs.finalize_job(job_id bigint, status pyjobs.job_status default null,
    reason text default null)
returns pyjobs.finalized_job
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    until constant timestamptz := clock_timestamp() + interval '500 milliseconds';
    j pyjobs_internal.job;
    can_end boolean;
    done boolean := false;
    stage_no smallint;
begin
    perform pyjobs_internal.require_reason('reason', finalize_job.reason);
    if finalize_job.status is not null
        and not exists (select from pyjobs_internal.job_state s where s.status = finalize_job.status
            and s.final)
    then
        perform pyjobs_internal.raise_invalid('status', 'null, SUCCESS, FAILURE or REVOKED',
            finalize_job.status::text);
    end if;
    perform pyjobs_internal.require_read_committed();
    j := pyjobs_internal.read_job(finalize_job.job_id);
    if j.finished_at is not null then
        return (false, j.status);
    end if;
    select s.finalizable into can_end from pyjobs_internal.job_state s where s.status = j.status;

    if finalize_job.status is not null then
        if can_end then
            can_end := pyjobs_internal.stop_serving(j.id, until);
            -- While we waited its run may have ended, and another begun.
            j := pyjobs_internal.read_job(finalize_job.job_id);
            if not (can_end and pyjobs_internal.fence_leases(j.id, j.run, until)) then
                perform pyjobs_internal.raise_in_the_way(j.id, false);
            end if;
            j := pyjobs_internal.lock_job(j.id, until + interval '400 milliseconds');
            select s.finalizable into can_end from pyjobs_internal.job_state s
                where s.status = j.status;
        end if;
        if j.finished_at is null and not can_end then
            raise exception 'job % is %: completion may not end it', j.id, j.status
                using errcode = 'PJ003',
                      detail = 'Only a job that is CREATED, PENDING, STARTED or RETRY can be '
                               'ended by force.',
                      hint = case when j.status = 'UNKNOWN'
                          then format('Decide it: select pyjobs.resolve_job(%s, ..)', j.id)
                             else format('It ends as REVOKED; to hurry: select '
                                         'pyjobs.cancel_job(%s, grace => ''0'')', j.id) end;
        end if;
        if j.finished_at is null then
            done := pyjobs_internal.transition_job(j.id, finalize_job.status, 'finalize_job',
                finalize_job.reason);
        end if;
    elsif can_end then
        j := pyjobs_internal.lock_job(j.id, until);
        select s.finalizable into can_end from pyjobs_internal.job_state s
            where s.status = j.status;
        if can_end and j.sealed and not exists (
            select from pyjobs_internal.stage s
            where s.job_id = j.id and s.run = j.run and pyjobs_internal.obstacle_any(j.id, j.run,
                s.no))
        then
            for stage_no in
                select s.no from pyjobs_internal.stage s where s.job_id = j.id and s.run = j.run
                    and not s.done order by s.no
            loop
                perform pyjobs_internal.complete_stage(j.id, j.run, stage_no);
            end loop;
            done := pyjobs_internal.end_complete_job(j.id, 'finalize_job', finalize_job.reason);
        end if;
    end if;
    return (done, pyjobs_internal.status_of(j.id));
end
$$;
