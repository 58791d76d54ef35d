-- pyjobs.queue_stats: how each queue stands.
-- Returns     one row a queue that has jobs which are not final, is or was paused, or was asked for
--             by an active worker: queue, paused,
--             waiting_jobs (released and not claimed yet: PENDING or RETRY; also those for later),
--             running_jobs (STARTED or CANCELING),
--             pending_batches and leased_batches (of jobs that are not final),
--             oldest_waiting (since when the longest waiting job could be claimed; null: none
--             waits), workers (active ones that ask for it; see active_workers)
-- Raises      nothing
-- Locks       nothing
-- Called by   roles pyjobs_reader and pyjobs_operator
create or replace function pyjobs.queue_stats()
returns setof pyjobs.queue_stat
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    with live as (
        select j.queue, v.status, greatest(j.run_since, j.run_at) as since,
            p.batches as pending, l.batches as leased
        from pyjobs_internal.job j
        join pyjobs.job v on v.id = j.id
        cross join lateral (
            select count(*) as batches from pyjobs_internal.batch b
            where b.job_id = j.id and b.run = j.run and b.state = 'pending') p
        cross join lateral (
            select count(*) as batches from pyjobs_internal.batch b
            where b.job_id = j.id and b.run = j.run and b.state = 'leased') l
        where j.finished_at is null
    ),
    jobs as (
        select l.queue,
            count(*) filter (where l.status in ('PENDING', 'RETRY')) as waiting,
            count(*) filter (where l.status in ('STARTED', 'CANCELING')) as running,
            sum(l.pending)::bigint as pending,
            sum(l.leased)::bigint as leased,
            min(l.since) filter (where l.status in ('PENDING', 'RETRY')) as oldest
        from live l
        group by l.queue
    ),
    asked as (
        select q.name as queue, count(*) as workers
        from pyjobs.active_workers() w
        cross join lateral unnest(w.queues) q (name)
        group by q.name
    )
    select n.name, coalesce(q.paused, false), coalesce(j.waiting, 0), coalesce(j.running, 0),
        coalesce(j.pending, 0), coalesce(j.leased, 0),
        j.oldest,
        coalesce(a.workers, 0)
    from (
        select j.queue as name from jobs j
        union
        select q.name from pyjobs_internal.queue q
        union
        select a.queue from asked a) n
    left join pyjobs_internal.queue q on q.name = n.name
    left join jobs j on j.queue = n.name
    left join asked a on a.queue = n.name
    order by n.name
$$;
