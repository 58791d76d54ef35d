-- pyjobs.resume_queue: let a paused queue be claimed from again. Safe to repeat.
--
--   queue   the queue's name; it need not have jobs yet
-- Returns     nothing
-- Raises      PJ005 bad name
-- Locks       the queue's row
-- Called by   operators
create or replace function pyjobs.resume_queue(queue text)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
begin
    perform pyjobs_internal.require_text('queue', resume_queue.queue);
    insert into pyjobs_internal.queue as q (name, paused) values (resume_queue.queue, false)
    on conflict (name) do update set paused = excluded.paused;
end
$$;
