-- pyjobs_internal.claim_from_jobs: lease one batch from each of many jobs, in a few statements.
--   What claim_from_job does, but that it finds nothing in a job with more than one open stage, nor
--   what waits for another try: a job from which nothing came may still have something.
--
--   job_ids  the jobs, each once, in order of service
--   worker   who claims
--   lease    for how long
-- Returns     the leased batches' ids, in the order of their jobs
-- Raises      nothing
-- Locks       the serving locks, shared, by try; the batches' rows; now and then as move_mark
-- Called by   claim_from_offers
create or replace function pyjobs_internal.claim_from_jobs(job_ids bigint[], worker text,
    lease interval)
returns bigint[]
language plpgsql
as $$
declare
    this_moment timestamptz := pyjobs_internal.clock();
    serving bigint[];
    ids bigint[];
    b record;
begin
    serving := array(
        select w.id from unnest(claim_from_jobs.job_ids) with ordinality w (id, no)
        where pg_try_advisory_xact_lock_shared(pyjobs_internal.serving_key(w.id))
        order by w.no);

    -- Only now the status, afresh. What is looked up in a few rows or by the mark is a subquery for
    -- each job, not a join or a call: either costs as much as the job's own rows.
    ids := array_remove(array(
        select (
            select p.id from pyjobs_internal.batch p
            where p.job_id = j.id and p.run = j.run and p.stage = j.stage
                and p.state = 'pending' and p.due_at = '-infinity'
                and p.pos >= coalesce((
                    select m.pos from pyjobs_internal.claim_mark m
                    where m.job_id = j.id and m.run = j.run and m.stage = j.stage
                    order by m.job_id desc, m.run desc, m.stage desc, m.pos desc
                    limit 1), 0)
            order by p.job_id, p.run, p.stage, p.due_at, p.pos
            limit 1
            for update skip locked)
        from unnest(serving) with ordinality w (id, no)
        cross join lateral (
            select job.id, job.run, min(s.no) as stage
            from pyjobs_internal.job job
            join pyjobs_internal.stage s
                on s.job_id = job.id and s.run = job.run and s.open and not s.done
            where job.id = w.id and not job.paused and job.run_at <= this_moment
                and (select t.claimable from pyjobs_internal.job_state t
                     where t.status = job.status)
                and not exists (
                    select from pyjobs_internal.queue q where q.name = job.queue and q.paused)
            group by job.id
            having count(*) = 1) j
        order by w.no), null);
    if cardinality(ids) = 0 then
        return ids;
    end if;

    update pyjobs_internal.batch o
    set state = 'leased', lease_epoch = o.lease_epoch + 1, attempt = o.attempt + 1,
        worker = claim_from_jobs.worker,
        leased_at = this_moment, lease_expires_at = this_moment + claim_from_jobs.lease
    where o.id = any (ids);

    for b in
        select o.job_id, o.run, o.stage from pyjobs_internal.batch o
        where o.id = any (array(select i.id from unnest(ids) i (id)
                                where pyjobs_internal.mark_due(i.id, 1)))
    loop
        perform pyjobs_internal.move_mark(b.job_id, b.run, b.stage, true);
    end loop;

    -- The mark "claimed since". Never awaited: first claims that overlap leave one each, and the
    -- earliest counts. Not "not exists": as a join it walks over the marks of all that are kept.
    insert into pyjobs_internal.job_start (job_id, at, era, run, worker, session_role)
    select j.id, this_moment, j.era, j.run, claim_from_jobs.worker, session_user
    from pyjobs_internal.job j
    where j.id = any (array(select o.job_id from pyjobs_internal.batch o where o.id = any (ids)))
        and (select true from pyjobs_internal.job_start m
             where m.job_id = j.id and m.era = j.era
             limit 1) is null;
    return ids;
end
$$;
