-- pyjobs.purge_jobs: delete old jobs that are final, with their batches, stages, history and
--   refused results. Jobs that somebody is changing at this moment are left for the next time.
--
--   older_than   finished at least that long ago; finite, from 0
-- Returns     how many jobs it deleted
-- Raises      PJ005 bad argument
-- Locks       the jobs' rows and all that goes with them; it waits for nobody's job
-- Called by   role pyjobs_operator
create or replace function pyjobs.purge_jobs(older_than interval)
returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    finished_before timestamptz;
    -- A bound cursor is planned for its first rows: by the index, however many are to come.
    old cursor for
        select j.id from pyjobs_internal.job j
        where j.finished_at <= finished_before
        order by j.finished_at
        for update skip locked;
    doomed bigint[] := '{}';
    purged bigint := 0;
begin
    begin
        if isfinite(purge_jobs.older_than) and purge_jobs.older_than >= interval '0' then
            finished_before := pyjobs_internal.clock() - purge_jobs.older_than;
        end if;
    exception when datetime_field_overflow then
        finished_before := null;  -- older than time itself
    end;
    if finished_before is null then
        perform pyjobs_internal.raise_invalid('older_than',
            'a finite interval from 0, within the range of times', purge_jobs.older_than::text);
    end if;

    -- A hundred jobs a statement, so that memory does not grow with the number, and one walk over
    -- the index: to look for the oldest again would be to step over the dead entries of all that
    -- this transaction has deleted, each time.
    for ended in old loop
        doomed := doomed || ended.id;
        if cardinality(doomed) = 100 then
            perform pyjobs_internal.delete_jobs(doomed);
            purged := purged + cardinality(doomed);
            doomed := '{}';
        end if;
    end loop;
    perform pyjobs_internal.delete_jobs(doomed);
    purged := purged + cardinality(doomed);

    -- Workers come and go under ever new names. One that is back at this moment stays.
    delete from pyjobs_internal.worker w
    where w.name = any (array(
        select o.name from pyjobs_internal.worker o
        where o.last_seen <= least(finished_before, pyjobs_internal.clock() - interval '1 day')
        for update skip locked));
    return purged;
end
$$;
