-- pyjobs_internal.arrival_key: the advisory lock under which batches come to wait in a stage.
--   Whoever adds or returns one holds it shared, from before he draws its position to the end of
--   his transaction; who moves the stage's low-water mark tries it exclusively, so that none is on
--   its way while he looks. See move_mark. A new run, and what an operator takes back while no
--   claim is served, need it not.
--
--   job_id, stage   the stage
-- Returns     the lock's key
-- Raises      nothing
-- Locks       nothing itself
-- Called by   add_items, close_batch, return_batch, move_mark
create or replace function pyjobs_internal.arrival_key(job_id bigint, stage smallint)
returns bigint
language sql immutable parallel safe
as $$ select hashint8extended(arrival_key.job_id, 7203456 + (arrival_key.stage::bigint << 32)) $$;
