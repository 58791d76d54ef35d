-- pyjobs_internal.raise_illegal: refuse a transition that the job's state does not allow.
--
--   job_id     the job
--   to_status  where it was to go
-- Returns     nothing
-- Raises      PJ003, always
-- Locks       nothing
-- Called by   quarantine_job, resolve_job, retry_job
create or replace function pyjobs_internal.raise_illegal(job_id bigint, to_status pyjobs.job_status)
returns void
language plpgsql
as $$
declare
    seen pyjobs.job_status := pyjobs_internal.status_of(raise_illegal.job_id);
begin
    raise exception 'job % is %: it cannot become %', raise_illegal.job_id, seen,
        raise_illegal.to_status
        using errcode = 'PJ003',
              detail = format('That is possible from %s.',
                  (select string_agg(t.from_status::text, ', ' order by t.from_status)
                   from pyjobs_internal.job_transition t
                       where t.to_status = raise_illegal.to_status)),
              hint = format('Ask what it waits for: select * from pyjobs.explain_job(%s). Nothing '
                            'was changed.', raise_illegal.job_id);
end
$$;
