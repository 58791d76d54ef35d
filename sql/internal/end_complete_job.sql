-- pyjobs_internal.end_complete_job: end a job whose stages are all done, by its threshold, where
-- its state, read afresh and under its lock, allows completion.
--
--   job_id   the job
--   by       who does it
--   reason   why
-- Returns     whether it ended it
-- Raises      nothing of its own
-- Locks       the job's row
-- Called by   advance_job, finalize_job
create or replace function pyjobs_internal.end_complete_job(job_id bigint, by text, reason text)
returns boolean
language plpgsql
as $$
declare
    too_many text;
begin
    select (
        select format('%s of %s items failed in stage %s, more than the threshold of %s', s.failed,
            s.total, s.key, trim_scale(j.failure_threshold))
        from pyjobs_internal.stage s
        where s.job_id = j.id and s.run = j.run and s.failed > j.failure_threshold * s.total
        order by s.no
        limit 1)
    into too_many
    from pyjobs_internal.job j
    join pyjobs_internal.job_state state on state.status = j.status
    where j.id = end_complete_job.job_id and state.finalizable
    for update of j;
    if not found then
        return false;
    end if;

    return pyjobs_internal.transition_job(end_complete_job.job_id,
        case when too_many is null then 'SUCCESS' else 'FAILURE' end::pyjobs.job_status,
        end_complete_job.by, concat_ws(': ', end_complete_job.reason, too_many));
end
$$;
