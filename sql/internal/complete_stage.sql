-- pyjobs_internal.complete_stage: write a stage's totals, and open the next one where a barrier
-- kept it closed.
--
--   job_id, run   the job's run
--   stage         the stage's number: sealed, all before it done, none of its batches open
-- Returns     the next stage's number; null where this was the last
-- Raises      nothing
-- Locks       the stage's row and the next one's; the stage's marks
-- Called by   advance_job, finalize_job
create or replace function pyjobs_internal.complete_stage(job_id bigint, run int, stage smallint)
returns smallint
language plpgsql
as $$
declare
    next_stage smallint;
    opened boolean;
begin
    update pyjobs_internal.stage s
    set done = true, open = true, total = c.total, succeeded = c.succeeded, failed = c.failed,
        counters = c.counters
    from pyjobs_internal.stage_counts(complete_stage.job_id, complete_stage.run,
        complete_stage.stage) c
    where s.job_id = complete_stage.job_id and s.run = complete_stage.run
        and s.no = complete_stage.stage;

    delete from pyjobs_internal.claim_mark m
    where m.job_id = complete_stage.job_id and m.run = complete_stage.run
        and m.stage = complete_stage.stage;

    select s.no, not s.open into next_stage, opened
    from pyjobs_internal.stage s
    where s.job_id = complete_stage.job_id and s.run = complete_stage.run
        and s.no = complete_stage.stage + 1;

    if opened then
        update pyjobs_internal.stage s
        set open = true
        where s.job_id = complete_stage.job_id and s.run = complete_stage.run and s.no = next_stage;
        perform pyjobs_internal.offer_job(complete_stage.job_id);
    end if;
    return next_stage;
end
$$;
