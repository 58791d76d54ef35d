-- pyjobs.enqueue_job: make a job.
--
--   queue       the lane; 1 to 200 characters
--   items       a JSON array of items for the first stage; null: one item, the params; an empty
--               array: a job that succeeds at once, if sealed and not held
--   params      any JSON value, handed to the worker with each batch
--   batch_size  items a batch; 1 to 1,000,000
--   priority    higher first
--   run_at      not before; a finite time
--   name        for people; may be null
--   dedupe_key  where a job of this queue with this key is not final, that job's id is returned and
--               nothing is made
--   failure_threshold  more failed items than this share, in any stage, make the job a FAILURE; 0
--                      to 1
--   max_attempts  how often a batch may be lost or given back with an error; 1 to 1,000
--   stages      their names, in order; 1 to 100
--   barriers    those of them that open only when all before are complete
--   hold        leave it CREATED until release_job
--   seal        false: more items come by add_items, and it does not complete before seal_job
-- Returns     the job's id
-- Raises      PJ005 bad argument
-- Locks       nothing that exists; with a dedupe_key it waits for a transaction that is making a
--             job with the same
-- Called by   producers
create or replace function pyjobs.enqueue_job(
    queue text, items jsonb default null, params jsonb default '{}', batch_size int default 1,
        priority int default 0,
    run_at timestamptz default now(), name text default null, dedupe_key text default null,
    failure_threshold numeric default 0.5, max_attempts int default 3,
        stages text[] default '{process}',
    barriers text[] default '{}', hold boolean default false, seal boolean default true)
returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    this_moment timestamptz := pyjobs_internal.clock();
    made bigint;
    batches bigint;
    unknown_barrier text;
begin
    -- A plain background job with the usual arguments is made here: a call costs as much as a
    -- check.
    if enqueue_job.items is null and enqueue_job.dedupe_key is null and not enqueue_job.hold
        and enqueue_job.stages = '{process}' and enqueue_job.barriers = '{}'
        and length(enqueue_job.queue) between 1 and 200
        and pg_column_size(enqueue_job.params) <= 30000
        and pg_column_compression(enqueue_job.params) is null
        and enqueue_job.batch_size between 1 and 1000000
        and enqueue_job.priority is not null and isfinite(enqueue_job.run_at)
        and coalesce(length(enqueue_job.name), 1) between 1 and 200
        and enqueue_job.failure_threshold between 0 and 1
        and enqueue_job.max_attempts between 1 and 1000
        and enqueue_job.seal is not null
    then
        insert into pyjobs_internal.job as j (
            run_at, created_at, run_since, priority, batch_size, max_attempts, status, held, sealed,
            failure_threshold, queue, name, params, created_by)
        values (enqueue_job.run_at, this_moment, this_moment, enqueue_job.priority,
            enqueue_job.batch_size, enqueue_job.max_attempts, 'PENDING', false, enqueue_job.seal,
            enqueue_job.failure_threshold, enqueue_job.queue, enqueue_job.name, enqueue_job.params,
            session_user)
        returning j.id into made;
        insert into pyjobs_internal.stage (job_id, run, no, key, barrier, open)
        values (made, 1, 1, 'process', false, true);
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count)
        select n.id, n.id, made, 1, 1, 1
        from (select nextval('pyjobs_internal.batch_id') as id) n;
        insert into pyjobs_internal.offer (job_id, due_at, priority, queue)
        values (made, greatest(pyjobs_internal.offer_time(), enqueue_job.run_at),
            enqueue_job.priority, enqueue_job.queue);
        perform pyjobs_internal.wake_workers(enqueue_job.queue);
        return made;
    end if;

    perform pyjobs_internal.require_text('queue', enqueue_job.queue);
    if enqueue_job.items is not null then
        perform pyjobs_internal.require_items('items', enqueue_job.items);
    end if;
    if enqueue_job.params is null then
        perform pyjobs_internal.raise_invalid('params', 'a JSON value', null);
    end if;
    perform pyjobs_internal.require_json_size('params', enqueue_job.params);
    perform pyjobs_internal.require_count('batch_size', enqueue_job.batch_size);
    perform pyjobs_internal.require_job_options(enqueue_job.priority, enqueue_job.run_at,
        enqueue_job.name,
        enqueue_job.failure_threshold, enqueue_job.max_attempts);
    if enqueue_job.dedupe_key is not null then
        perform pyjobs_internal.require_text('dedupe_key', enqueue_job.dedupe_key);
    end if;
    perform pyjobs_internal.require_names('stages', enqueue_job.stages);
    perform pyjobs_internal.require_names('barriers', enqueue_job.barriers, true);
    select b.key into unknown_barrier from unnest(enqueue_job.barriers) b (key)
    where b.key <> all (enqueue_job.stages) limit 1;
    if found then
        perform pyjobs_internal.raise_invalid('barriers', 'an array of names that stand in stages',
            unknown_barrier);
    end if;
    if enqueue_job.hold is null then
        perform pyjobs_internal.raise_invalid('hold', 'true or false', null);
    end if;
    if enqueue_job.seal is null then
        perform pyjobs_internal.raise_invalid('seal', 'true or false', null);
    end if;

    loop
        if enqueue_job.dedupe_key is not null then
            select j.id into made from pyjobs_internal.job j
            where j.queue = enqueue_job.queue and j.dedupe_key = enqueue_job.dedupe_key
                and j.finished_at is null;
            if found then
                return made;
            end if;
        end if;
        -- Where another transaction makes a job with this key, this waits for it, and then the look
        -- above finds the job.
        insert into pyjobs_internal.job as j (
            run_at, created_at, run_since, priority, batch_size, max_attempts, status, held, sealed,
                failure_threshold, queue,
            name, dedupe_key, params, created_by)
        values (enqueue_job.run_at, this_moment, this_moment, enqueue_job.priority,
            enqueue_job.batch_size,
            enqueue_job.max_attempts, case when enqueue_job.hold then 'CREATED'
                else 'PENDING' end::pyjobs.job_status,
            enqueue_job.hold, enqueue_job.seal, enqueue_job.failure_threshold, enqueue_job.queue,
                enqueue_job.name,
            enqueue_job.dedupe_key, enqueue_job.params, session_user)
        on conflict (queue, dedupe_key) where dedupe_key is not null
            and finished_at is null do nothing
        returning j.id into made;
        exit when found;
    end loop;

    insert into pyjobs_internal.stage (job_id, run, no, key, barrier, open)
    select made, 1, s.no, s.key, s.key = any (enqueue_job.barriers), s.no = 1
        or s.key <> all (enqueue_job.barriers)
    from unnest(enqueue_job.stages) with ordinality s (key, no);

    batches := pyjobs_internal.insert_batches(made, 1, 1::smallint, enqueue_job.items,
        enqueue_job.batch_size);
    if batches >= 512 then
        -- Its total, so that progress need not count what waits (move_mark). Nobody else has seen
        -- the job: what comes to it later has a higher id than all that was drawn here.
        insert into pyjobs_internal.claim_mark (job_id, run, stage, pos, summed_to, still_open,
            succeeded, failed, counters, total_to, total)
        values (made, 1, 1, 0, 0, '{}', 0, 0, '{}', currval('pyjobs_internal.batch_id') + 1,
            jsonb_array_length(enqueue_job.items));
    end if;
    if not enqueue_job.hold then
        if batches > 0 then
            insert into pyjobs_internal.offer (job_id, due_at, priority, queue)
            values (made, greatest(pyjobs_internal.offer_time(), enqueue_job.run_at),
                enqueue_job.priority, enqueue_job.queue);
            perform pyjobs_internal.wake_workers(enqueue_job.queue);
        elsif enqueue_job.seal then
            perform pyjobs_internal.advance_job(made, true, 'enqueue_job');
        end if;
    end if;
    return made;
end
$$;
