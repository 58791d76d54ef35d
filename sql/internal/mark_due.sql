-- pyjobs_internal.mark_due: is it time to move a low-water mark?
--   For about one batch in 512, told by its id: no counter is kept, and a small job is spared.
--
--   first    the id of the first batch that was claimed, or of one that was added
--   batches  how many were; for the mark of offers, which is moved more often, eight times
--            as many
-- Returns     whether it is
-- Raises      nothing
-- Locks       nothing
-- Called by   claim_from_job, claim_from_jobs, claim_from_offers, add_items, close_batch
create or replace function pyjobs_internal.mark_due(first bigint, batches int)
returns boolean
language sql immutable parallel safe
as $$ select (hashint8(mark_due.first) & 511) < mark_due.batches $$;
