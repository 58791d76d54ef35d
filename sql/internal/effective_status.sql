-- pyjobs_internal.effective_status: the status that people see.
--   STARTED is not stored with the job: it is PENDING or RETRY, claimed since (a row in job_start
--   for its era).
--   Not in SQL: a function in SQL that is not put in place of its call is prepared at each.
--
--   status, job_id, era   of the job's row
-- Returns     the status
-- Raises      nothing
-- Locks       nothing
-- Called by   everything that shows a status
create or replace function pyjobs_internal.effective_status(status pyjobs.job_status, job_id bigint,
    era int)
returns pyjobs.job_status
language plpgsql
as $$
begin
    if effective_status.status in ('PENDING', 'RETRY') then
        perform from pyjobs_internal.job_start s
        where s.job_id = effective_status.job_id and s.era = effective_status.era
        limit 1;
        if found then
            return 'STARTED';
        end if;
    end if;
    return effective_status.status;
end
$$;
