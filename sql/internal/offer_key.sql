-- pyjobs_internal.offer_key: the advisory lock that stands between who offers a job's batches and
-- who withdraws the offer.
--   Both take it by try only: shared to offer, exclusively to withdraw. See offer_job.
--
--   job_id   the job
-- Returns     the lock's key
-- Raises      nothing
-- Locks       nothing itself
-- Called by   offer_job, settle_offers
create or replace function pyjobs_internal.offer_key(job_id bigint)
returns bigint
language sql immutable parallel safe
as $$ select hashint8extended(offer_key.job_id, 7203453) $$;
