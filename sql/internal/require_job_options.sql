-- pyjobs_internal.require_job_options: check what the enqueueing calls have in common.
--
--   priority, run_at, name, failure_threshold, max_attempts   as enqueue_job says
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   enqueue_job, enqueue_jobs
create or replace function pyjobs_internal.require_job_options(
    priority int, run_at timestamptz, name text, failure_threshold numeric, max_attempts int)
returns void
language plpgsql
as $$
begin
    if require_job_options.priority is null then
        perform pyjobs_internal.raise_invalid('priority', 'a whole number', null);
    end if;
    if require_job_options.run_at is null or not isfinite(require_job_options.run_at) then
        perform pyjobs_internal.raise_invalid('run_at', 'a finite time',
            require_job_options.run_at::text);
    end if;
    if require_job_options.name is not null then
        perform pyjobs_internal.require_text('name', require_job_options.name);
    end if;
    -- NaN is above every number here, so that it is refused too.
    if require_job_options.failure_threshold is null
        or require_job_options.failure_threshold not between 0 and 1 then
        perform pyjobs_internal.raise_invalid('failure_threshold', 'a number from 0 to 1',
            require_job_options.failure_threshold::text);
    end if;
    if require_job_options.max_attempts is null or require_job_options.max_attempts not between 1
        and 1000 then
        perform pyjobs_internal.raise_invalid('max_attempts', 'a whole number from 1 to 1000',
            require_job_options.max_attempts::text);
    end if;
end
$$;
