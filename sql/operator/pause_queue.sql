-- pyjobs.pause_queue: claim nothing more of a queue's jobs. Work in flight goes on. Safe to repeat.
--
--   queue   the queue's name; it need not have jobs yet
-- Returns     nothing
-- Raises      PJ005 bad name, PJ006 somebody else is changing it
-- Locks       the queue's row; it waits at most 1 second
-- Called by   operators
create or replace function pyjobs.pause_queue(queue text)
returns void
language sql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$ select pyjobs_internal.set_queue_paused(pause_queue.queue, true) $$;
