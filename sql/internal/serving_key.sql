-- pyjobs_internal.serving_key: the advisory lock under which a job's batches are claimed.
--   Claims hold it shared, and only by try; who stops a job takes it exclusively, so that no claim
--   is in flight.
--
--   job_id   the job
-- Returns     the lock's key: a hash of 64 bits, so that it keeps clear of the application's own
-- Raises      nothing
-- Locks       nothing itself
-- Called by   claim_from_job, claim_from_jobs, stop_serving, advance_job, raise_in_the_way
create or replace function pyjobs_internal.serving_key(job_id bigint)
returns bigint
language sql immutable parallel safe
as $$ select hashint8extended(serving_key.job_id, 7203451) $$;
