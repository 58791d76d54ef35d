-- pyjobs_internal.offer_time: the time, for an offer that is about to be written.
--   Drawn when the transaction has its id, never before: who moves a mark past a time waits for
--   the transactions whose ids are older than his, and so for all that may write an offer with an
--   earlier time. See move_offer_mark. No offer gets an earlier time than this.
-- Returns     the time
-- Raises      nothing
-- Locks       nothing
-- Called by   enqueue_job, enqueue_jobs, offer_job, settle_offers, set_priority
create or replace function pyjobs_internal.offer_time()
returns timestamptz
language sql volatile parallel unsafe
as $$ select case when pg_current_xact_id() is not null then pyjobs_internal.clock() end $$;
