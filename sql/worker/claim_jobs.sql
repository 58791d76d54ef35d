-- pyjobs.claim_jobs: lease one batch from each of many jobs, for workers of small jobs.
--   The order of jobs is that of claim_next_job.
--
--   worker    the caller's name
--   queues    the queues it serves
--   max_jobs  of how many jobs at most; 1 to 1,000,000, and never more than 200 in one call, since
--             each takes two of the server's locks
--   lease     how long each may take; more than 0, at most 1 day
-- Returns     one row a job, as claim_next_job
-- Raises      PJ005 bad argument, PJ007 isolation level
-- Locks       as claim_next_job, for each job; it never waits
-- Called by   workers
create or replace function pyjobs.claim_jobs(
    worker text, queues text[] default '{default}', max_jobs int default 1,
        lease interval default '60 seconds')
returns setof pyjobs.claimed_batch
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    perform pyjobs_internal.require_text('worker', claim_jobs.worker);
    perform pyjobs_internal.require_names('queues', claim_jobs.queues);
    perform pyjobs_internal.require_count('max_jobs', claim_jobs.max_jobs);
    perform pyjobs_internal.require_lease(claim_jobs.lease);
    perform pyjobs_internal.require_read_committed();

    return query select * from pyjobs_internal.claim_from_offers(
        claim_jobs.worker, claim_jobs.queues, claim_jobs.max_jobs, 1, claim_jobs.lease);
end
$$;
