-- pyjobs.job_history: what became of a job: every transition, with when, by whom and why.
--
--   job_id    the job
-- Returns     one row a transition, in order: at, run, from_status (null: it was made), to_status,
--             session_role (the database role that was logged in), by (a worker's name, or the
--             call), reason (null: none was given). A row's from_status is the to_status of the row
--             before it.
-- Raises      PJ004 no such job, PJ005 job_id is null
-- Locks       nothing
-- Called by   roles pyjobs_reader and pyjobs_operator
create or replace function pyjobs.job_history(job_id bigint)
returns setof pyjobs.history_entry
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    -- Every job has its creation to tell of.
    return query
        select t.at, t.run, t.from_status, t.to_status, t.session_role, t.by, t.reason
        from pyjobs_internal.timeline t
        where t.job_id = job_history.job_id
        order by t.seq;
    if not found then
        perform pyjobs_internal.raise_no_job(job_history.job_id);
    end if;
end
$$;
