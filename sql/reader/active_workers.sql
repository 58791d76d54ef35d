-- pyjobs.active_workers: who asked for work in the last hour.
-- Returns     one row a worker, by name: worker, queues (those that it asked for last), last_seen
--             (when it last asked or extended a lease, to some seconds), leased_batches (what it
--             holds now)
-- Raises      nothing
-- Locks       nothing
-- Called by   roles pyjobs_reader and pyjobs_operator; queue_stats
create or replace function pyjobs.active_workers()
returns setof pyjobs.worker_stat
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select w.name, w.queues, w.last_seen, coalesce(l.batches, 0)
    from pyjobs_internal.worker w
    left join (
        select b.worker, count(*) as batches
        from pyjobs_internal.batch b
        where b.state = 'leased'
        group by b.worker) l on l.worker = w.name
    where w.last_seen > pyjobs_internal.clock() - interval '1 hour'
    order by w.name
$$;
