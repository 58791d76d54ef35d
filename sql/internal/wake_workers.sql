-- pyjobs_internal.wake_workers: tell workers that listen that a queue has work again.
--   Only where workers went away empty lately, since a notification takes a lock of the whole
--   server at commit. It is a wake-up and no more: workers poll too. Channel pyjobs, payload the
--   queue's name.
--
--   queue   the queue
-- Returns     nothing
-- Raises      nothing
-- Locks       the server's notification queue, at commit
-- Called by   enqueue_job, enqueue_jobs, offer_job, set_queue_paused
create or replace function pyjobs_internal.wake_workers(queue text)
returns void
language plpgsql
as $$
begin
    perform from pyjobs_internal.worker w
    where wake_workers.queue = any (w.queues)
        and w.last_empty_at > pyjobs_internal.clock() - interval '1 minute';
    if found then
        perform pg_notify('pyjobs', wake_workers.queue);
    end if;
end
$$;
