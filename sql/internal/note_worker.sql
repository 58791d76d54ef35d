-- pyjobs_internal.note_worker: remember that a worker asked for work.
--   At most one write in 5 seconds for each worker, and never a wait: where two sessions use one
--   name, one of them skips.
--
--   worker   its name
--   queues   the queues that it asked for; null: as before
--   empty    whether it went away empty
-- Returns     nothing
-- Raises      nothing
-- Locks       an advisory lock of the name, by try; the worker's row
-- Called by   the claims, extend_lease
create or replace function pyjobs_internal.note_worker(worker text, queues text[], empty boolean)
returns void
language plpgsql
as $$
declare
    this_moment timestamptz := pyjobs_internal.clock();
begin
    perform from pyjobs_internal.worker w
    where w.name = note_worker.worker and w.last_seen > this_moment - interval '5 seconds'
        and (note_worker.queues is null or w.queues = note_worker.queues)
        and (not note_worker.empty or w.last_empty_at > this_moment - interval '5 seconds');
    if found or not pg_try_advisory_xact_lock(hashtextextended(note_worker.worker, 7203454)) then
        return;
    end if;
    insert into pyjobs_internal.worker as w (name, queues, last_seen, last_empty_at)
    values (note_worker.worker, coalesce(note_worker.queues, '{}'), this_moment, case
        when note_worker.empty then this_moment end)
    on conflict (name) do update
    set queues = coalesce(note_worker.queues, w.queues), last_seen = excluded.last_seen,
        last_empty_at = coalesce(excluded.last_empty_at, w.last_empty_at);
end
$$;
