-- pyjobs_internal.waiting_key: the advisory lock that an ender holds while he waits, and only then.
--   The closer of a cancelled job's lease must not wait for one who waits for him: who holds this
--   lock looks at the job's status again when he has waited. See await_obstacle.
--
--   job_id   the job
-- Returns     the lock's key
-- Raises      nothing
-- Locks       nothing itself
-- Called by   await_obstacle, advance_job
create or replace function pyjobs_internal.waiting_key(job_id bigint)
returns bigint
language sql immutable parallel safe
as $$ select hashint8extended(waiting_key.job_id, 7203455) $$;
