-- pyjobs_internal.end_complete_job: end a job whose stages are all done, by its threshold.
--
--   job_id   the job; its state allows completion
--   by       who does it
--   reason   why
-- Returns     nothing
-- Raises      nothing of its own
-- Locks       the job's row
-- Called by   advance_job, finalize_job
create or replace function pyjobs_internal.end_complete_job(job_id bigint, by text, reason text)
returns void
language plpgsql
as $$
declare
    too_many text;
begin
    select format('%s of %s items failed in stage %s, more than the threshold of %s', s.failed,
        s.total, s.key,
                  trim_scale(j.failure_threshold))
    into too_many
    from pyjobs_internal.job j
    join pyjobs_internal.stage s on s.job_id = j.id and s.run = j.run
    where j.id = end_complete_job.job_id and s.failed > j.failure_threshold * s.total
    order by s.no
    limit 1;

    perform pyjobs_internal.transition_job(end_complete_job.job_id,
        case when too_many is null then 'SUCCESS' else 'FAILURE' end::pyjobs.job_status,
        end_complete_job.by, concat_ws(': ', end_complete_job.reason, too_many));
end
$$;
