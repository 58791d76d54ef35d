-- pyjobs.enqueue_jobs: make many jobs of one batch and one item each.
--
--   queue    the lane
--   params   a JSON array of at most 10,000,000 elements; each is one job's params, and its item
--   priority, run_at, name, failure_threshold, max_attempts   as enqueue_job, for all of them
-- Returns     the jobs' ids, in the order of params; an empty array for none
-- Raises      PJ005 bad argument
-- Locks       nothing that exists
-- Called by   producers
create or replace function pyjobs.enqueue_jobs(
    queue text, params jsonb, priority int default 0, run_at timestamptz default now(),
        name text default null,
    failure_threshold numeric default 0.5, max_attempts int default 3)
returns bigint[]
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    this_moment timestamptz := pyjobs_internal.clock();
    made bigint[];
begin
    perform pyjobs_internal.require_text('queue', enqueue_jobs.queue);
    perform pyjobs_internal.require_items('params', enqueue_jobs.params);
    perform pyjobs_internal.require_job_options(enqueue_jobs.priority, enqueue_jobs.run_at,
        enqueue_jobs.name,
        enqueue_jobs.failure_threshold, enqueue_jobs.max_attempts);

    made := array(select nextval('pyjobs_internal.job_id') from generate_series(1,
        jsonb_array_length(enqueue_jobs.params)));
    insert into pyjobs_internal.job (
        id, run_at, created_at, run_since, priority, batch_size, max_attempts, status, held, sealed,
            failure_threshold, queue,
        name, params, created_by)
    select m.id, enqueue_jobs.run_at, this_moment, this_moment, enqueue_jobs.priority, 1,
        enqueue_jobs.max_attempts, 'PENDING',
           false, true, enqueue_jobs.failure_threshold, enqueue_jobs.queue, enqueue_jobs.name,
               p.value, session_user
    from unnest(made) with ordinality m (id, no)
    join jsonb_array_elements(enqueue_jobs.params) with ordinality p (value, no) using (no);
    insert into pyjobs_internal.stage (job_id, run, no, key, barrier, open)
    select m.id, 1, 1, 'process', false, true from unnest(made) m (id);
    insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count)
    select n.batch_id, n.batch_id, n.id, 1, 1, 1
    from (select nextval('pyjobs_internal.batch_id') as batch_id, m.id from unnest(made) m (id)) n;
    insert into pyjobs_internal.offer (job_id, due_at, priority, queue)
    select m.id, greatest((select pyjobs_internal.offer_time()), enqueue_jobs.run_at),
        enqueue_jobs.priority, enqueue_jobs.queue
    from unnest(made) m (id);
    if made <> '{}' then
        perform pyjobs_internal.wake_workers(enqueue_jobs.queue);
    end if;
    return made;
end
$$;
