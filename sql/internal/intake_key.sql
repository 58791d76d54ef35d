-- pyjobs_internal.intake_key: the advisory lock under which items are added to an unsealed job.
--   add_items holds it shared; who seals or ends an unsealed job takes it exclusively, so that no
--   items are in flight.
--
--   job_id   the job
-- Returns     the lock's key
-- Raises      nothing
-- Locks       nothing itself
-- Called by   add_items, seal_job, stop_serving, advance_job
create or replace function pyjobs_internal.intake_key(job_id bigint)
returns bigint
language sql immutable parallel safe
as $$ select hashint8extended(intake_key.job_id, 7203452) $$;
