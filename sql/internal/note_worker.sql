-- pyjobs_internal.note_worker: remember that a worker asked for work.
--   At most one write in 5 seconds for each worker, and never a wait: where two sessions use one
--   name, or a purge is removing it, this is left out.
--
--   worker   its name
--   queues   the queues that it asked for; null: as before
--   empty    whether it went away empty
-- Returns     nothing
-- Raises      nothing
-- Locks       an advisory lock of the name, by try; the worker's row
-- Called by   claim_from_offers, claim_next_batch, record_and_claim, extend_lease
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
    -- No "on conflict": that would wait for a purge.
    update pyjobs_internal.worker w
    set queues = coalesce(note_worker.queues, w.queues), last_seen = this_moment,
        last_empty_at = case when note_worker.empty then this_moment else w.last_empty_at end
    where w.name = (select o.name from pyjobs_internal.worker o
                    where o.name = note_worker.worker for update skip locked);
    if not found then
        insert into pyjobs_internal.worker (name, queues, last_seen, last_empty_at)
        select note_worker.worker, coalesce(note_worker.queues, '{}'), this_moment,
            case when note_worker.empty then this_moment end
        where not exists (select from pyjobs_internal.worker o where o.name = note_worker.worker);
    end if;
end
$$;
