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
    doomed bigint[];
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

    -- A hundred at a time, the oldest first, so that memory does not grow with the number.
    loop
        doomed := array(
            select j.id from pyjobs_internal.job j
            where j.finished_at <= finished_before
            order by j.finished_at
            limit 100
            for update skip locked);
        exit when cardinality(doomed) = 0;

        delete from pyjobs_internal.batch b where b.job_id = any (doomed);
        delete from pyjobs_internal.claim_mark m where m.job_id = any (doomed);
        delete from pyjobs_internal.stage s where s.job_id = any (doomed);
        delete from pyjobs_internal.job_start f where f.job_id = any (doomed);
        -- A claim withdraws the offer that it has in its hand; its transaction may be long.
        delete from pyjobs_internal.offer o
        where o.id = any (array(
            select f.id from pyjobs_internal.offer f
            where f.job_id = any (doomed)
            for update skip locked));
        delete from pyjobs_internal.history h where h.job_id = any (doomed);
        delete from pyjobs_internal.refusal r where r.job_id = any (doomed);
        delete from pyjobs_internal.job j where j.id = any (doomed);
        purged := purged + cardinality(doomed);
    end loop;

    -- Workers come and go under ever new names. One that is back at this moment stays.
    delete from pyjobs_internal.worker w
    where w.name = any (array(
        select o.name from pyjobs_internal.worker o
        where o.last_seen <= least(finished_before, pyjobs_internal.clock() - interval '1 day')
        for update skip locked));
    return purged;
end
$$;
