-- pyjobs_internal.offer_job: see to it that claims which may take any job find this one, and that
-- workers who listen hear of it.
--   Called by whoever makes a batch claimable. An offer that stands will do, if it cannot be
--   withdrawn before we commit: who withdraws takes the offer's advisory lock exclusively, we take
--   it shared. Not got: he cannot see our batches yet, so we add an offer of our own; one too many
--   does no harm. Neither ever waits for the other.
--
--   job_id   the job
--   due_at   from when on there is something to claim; null: now
-- Returns     nothing
-- Raises      nothing
-- Locks       the offer's advisory lock, shared, by try; as wake_workers
-- Called by   add_items, close_batch (items for the next stage), complete_stage, release_job,
--             resolve_job, retry_job, return_batch, set_paused
create or replace function pyjobs_internal.offer_job(job_id bigint, due_at timestamptz default null)
returns void
language plpgsql
as $$
declare
    j record;
    due timestamptz;
begin
    select o.run_at, o.priority, o.queue into j
    from pyjobs_internal.job o
    where o.id = offer_job.job_id;
    due := greatest(pyjobs_internal.offer_time(), offer_job.due_at, j.run_at);
    if pg_try_advisory_xact_lock_shared(pyjobs_internal.offer_key(offer_job.job_id)) then
        -- None below the mark: those that are no more lie there.
        perform from pyjobs_internal.offer o
        where o.job_id = offer_job.job_id and o.due_at <= due
            and o.due_at >= coalesce((
                select m.due_at from pyjobs_internal.offer_mark m
                where m.queue = j.queue and m.priority = j.priority
                order by m.queue, m.priority desc, m.id desc
                limit 1), '-infinity');
        if found then
            return;
        end if;
    end if;
    insert into pyjobs_internal.offer (job_id, due_at, priority, queue)
    values (offer_job.job_id, due, j.priority, j.queue);
    -- There was nothing, and now there is.
    if due <= pyjobs_internal.clock() then
        perform pyjobs_internal.wake_workers(j.queue);
    end if;
end
$$;
