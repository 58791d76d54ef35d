-- pyjobs_internal.claim_from_job: lease pending batches of one job.
--   First the serving lock, shared and by try: who stops a job holds it exclusively, and then there
--   is nothing here for us. Only then the status, afresh: a claim that begins after a cancel has
--   committed finds none. SKIP LOCKED stands at the batches, never at the job: one big job serves
--   every worker.
--
--   job_id       the job
--   worker       who claims
--   max_batches  how many at most
--   lease        for how long
-- Returns     the leased batches, in order of service; none where the job is not claimable, paused,
--             not due, or has nothing
-- Raises      nothing
-- Locks       the serving lock, shared, by try; the batches' rows; now and then as move_mark
-- Called by   claim_from_offers, claim_next_batch, record_and_claim
create or replace function pyjobs_internal.claim_from_job(job_id bigint, worker text,
    max_batches int, lease interval)
returns setof pyjobs.claimed_batch
language plpgsql
as $$
declare
    j record;
    s record;
    wanted int := claim_from_job.max_batches;
    ids bigint[];
    this_moment timestamptz := pyjobs_internal.clock();
begin
    if not pg_try_advisory_xact_lock_shared(pyjobs_internal.serving_key(claim_from_job.job_id)) then
        return;
    end if;

    select job.run, job.era, job.queue, job.params into j
    from pyjobs_internal.job job
    join pyjobs_internal.job_state state on state.status = job.status
    where job.id = claim_from_job.job_id and state.claimable and not job.paused
        and job.run_at <= this_moment
        and not exists (select from pyjobs_internal.queue q where q.name = job.queue and q.paused);
    if not found then
        return;
    end if;

    -- Later stages first: what is begun is finished before more is begun.
    for s in
        select stage.no, stage.key from pyjobs_internal.stage stage
        where stage.job_id = claim_from_job.job_id and stage.run = j.run and stage.open
            and not stage.done
        order by stage.no desc
    loop
        -- First those that wait for nothing but their turn, from the mark on; then those that had
        -- to wait for another try.
        ids := array(
            select p.id from pyjobs_internal.batch p
            where p.job_id = claim_from_job.job_id and p.run = j.run and p.stage = s.no
                and p.state = 'pending' and p.due_at = '-infinity'
                and p.pos >= pyjobs_internal.low_water(claim_from_job.job_id, j.run, s.no)
            order by p.job_id, p.run, p.stage, p.due_at, p.pos
            limit wanted
            for update skip locked);
        if cardinality(ids) < wanted then
            ids := ids || array(
                select p.id from pyjobs_internal.batch p
                where p.job_id = claim_from_job.job_id and p.run = j.run and p.stage = s.no
                    and p.state = 'pending' and p.due_at > '-infinity' and p.due_at <= this_moment
                order by p.job_id, p.run, p.stage, p.due_at, p.pos
                limit wanted - cardinality(ids)
                for update skip locked);
        end if;
        continue when cardinality(ids) = 0;
        -- By their ids alone: with the state, a plan from when the table was small walks the index
        -- of all that is pending.
        return query
        with taken as (
            update pyjobs_internal.batch b
            set state = 'leased', lease_epoch = b.lease_epoch + 1, attempt = b.attempt + 1,
                worker = claim_from_job.worker,
                leased_at = this_moment, lease_expires_at = this_moment + claim_from_job.lease
            where b.id = any (ids)
            returning b.id, b.lease_epoch, b.attempt, b.items, b.lease_expires_at, b.pos)
        select claim_from_job.job_id, j.run, t.id, t.lease_epoch, t.attempt, j.queue, s.key,
            j.params,
               coalesce(t.items, jsonb_build_array(j.params)), t.lease_expires_at
        from taken t
        order by t.pos;
        if pyjobs_internal.mark_due(ids[1], cardinality(ids)) then
            perform pyjobs_internal.move_mark(claim_from_job.job_id, j.run, s.no);
        end if;
        wanted := wanted - cardinality(ids);
        exit when wanted = 0;
    end loop;

    -- The mark "claimed since". Never awaited: first claims that overlap leave one each, and the
    -- earliest counts.
    if wanted < claim_from_job.max_batches then
        perform from pyjobs_internal.job_start m where m.job_id = claim_from_job.job_id
            and m.era = j.era;
        if not found then
            insert into pyjobs_internal.job_start (job_id, at, era, run, worker, session_role)
            values (claim_from_job.job_id, this_moment, j.era, j.run, claim_from_job.worker,
                session_user);
        end if;
    end if;
end
$$;
