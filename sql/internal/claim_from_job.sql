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
-- Returns     the leased batches, in order of service (what a claim that was rolled back had in
--             hand lately comes last); none where the job is not claimable, paused, not due, or has
--             nothing
-- Raises      nothing
-- Locks       the serving lock, shared, by try; the batches' rows; now and then as move_mark
-- Called by   claim_from_offers, claim_next_batch, record_and_claim
create or replace function pyjobs_internal.claim_from_job(job_id bigint, worker text,
    max_batches int, lease interval)
returns setof pyjobs.claimed_batch
language plpgsql
as $$
declare
    s record;
    wanted int := claim_from_job.max_batches;
    ids bigint[];
    taken pyjobs.claimed_batch;
    this_moment timestamptz := pyjobs_internal.clock();
begin
    if not pg_try_advisory_xact_lock_shared(pyjobs_internal.serving_key(claim_from_job.job_id)) then
        return;
    end if;

    -- Later stages first: what is begun is finished before more is begun.
    for s in
        select job.run, job.era, job.queue, job.params, stage.no, stage.key,
            coalesce((
                select m.pos from pyjobs_internal.claim_mark m
                where m.job_id = job.id and m.run = job.run and m.stage = stage.no
                order by m.job_id desc, m.run desc, m.stage desc, m.pos desc
                limit 1), 0) as mark,
            exists (
                select from pyjobs_internal.job_start m
                where m.job_id = job.id and m.era = job.era) as started
        from pyjobs_internal.job job
        join pyjobs_internal.stage stage
            on stage.job_id = job.id and stage.run = job.run and stage.open and not stage.done
        where job.id = claim_from_job.job_id and not job.paused and job.run_at <= this_moment
            and (select t.claimable from pyjobs_internal.job_state t where t.status = job.status)
            and (select q.paused from pyjobs_internal.queue q where q.name = job.queue) is not true
        order by stage.job_id desc, stage.run desc, stage.no desc
    loop
        -- First those that wait for nothing but their turn, from the mark on. Not what bears a
        -- recent xid of another's: he may be claiming it, and where he commits between our look
        -- and our lock we should lock what is his, and his record would wait for us. He may have
        -- rolled back, too: so not for long, as we walk over them. Then whatever can be locked, and
        -- what had to wait for another try.
        if wanted = 1 then
            -- The usual case, found and leased in one statement.
            update pyjobs_internal.batch b
            set state = 'leased', lease_epoch = b.lease_epoch + 1, attempt = b.attempt + 1,
                worker = claim_from_job.worker,
                leased_at = this_moment, lease_expires_at = this_moment + claim_from_job.lease
            where b.id = (
                select p.id from pyjobs_internal.batch p
                where p.job_id = claim_from_job.job_id and p.run = s.run and p.stage = s.no
                    and p.state = 'pending' and p.due_at = '-infinity'
                    and p.pos >= s.mark and (age(p.xmax) > 200 or p.xmax = p.xmin)
                order by p.job_id, p.run, p.stage, p.due_at, p.pos
                limit 1
                for update skip locked)
            returning b.job_id, b.run, b.id, b.lease_epoch, b.attempt, s.queue, s.key, s.params,
                coalesce(b.items, jsonb_build_array(s.params)), b.lease_expires_at into taken;
            if found then
                return next taken;
                if pyjobs_internal.mark_due(taken.batch_id, 1) then
                    perform pyjobs_internal.move_mark(claim_from_job.job_id, s.run, s.no, true);
                end if;
                if not s.started and claim_from_job.max_batches = 1 then
                    insert into pyjobs_internal.job_start
                        (job_id, at, era, run, worker, session_role)
                    values (claim_from_job.job_id, this_moment, s.era, s.run,
                        claim_from_job.worker, session_user);
                end if;
                return;
            end if;
            ids := '{}';
        else
            ids := array(
                select p.id from pyjobs_internal.batch p
                where p.job_id = claim_from_job.job_id and p.run = s.run and p.stage = s.no
                    and p.state = 'pending' and p.due_at = '-infinity'
                    and p.pos >= s.mark and (age(p.xmax) > 200 or p.xmax = p.xmin)
                order by p.job_id, p.run, p.stage, p.due_at, p.pos
                limit wanted
                for update skip locked);
        end if;
        if cardinality(ids) < wanted then
            ids := ids || array(
                select p.id from pyjobs_internal.batch p
                where p.job_id = claim_from_job.job_id and p.run = s.run and p.stage = s.no
                    and p.state = 'pending' and p.due_at <= this_moment
                    and (p.due_at, p.pos) >= ('-infinity', s.mark)
                    -- Looked up, not compared with each.
                    and p.id not in (select i.id from unnest(ids) i (id))
                order by p.job_id, p.run, p.stage, p.due_at, p.pos
                limit wanted - cardinality(ids)
                for update skip locked);
        end if;
        continue when cardinality(ids) = 0;
        -- By their ids alone: with the state, a plan from when the table was small walks the
        -- index of all that is pending.
        return query
        with taken as (
            update pyjobs_internal.batch b
            set state = 'leased', lease_epoch = b.lease_epoch + 1, attempt = b.attempt + 1,
                worker = claim_from_job.worker,
                leased_at = this_moment, lease_expires_at = this_moment + claim_from_job.lease
            where b.id = any (ids)
            returning b.id, b.lease_epoch, b.attempt, b.items, b.lease_expires_at, b.pos)
        select claim_from_job.job_id, s.run, t.id, t.lease_epoch, t.attempt, s.queue, s.key,
            s.params, coalesce(t.items, jsonb_build_array(s.params)), t.lease_expires_at
        from taken t
        order by t.pos;
        if pyjobs_internal.mark_due(ids[1], cardinality(ids)) then
            perform pyjobs_internal.move_mark(claim_from_job.job_id, s.run, s.no, true);
        end if;
        -- Claimed since. Never awaited: first claims that overlap leave a mark each, and the
        -- earliest counts.
        if not s.started and wanted = claim_from_job.max_batches then
            insert into pyjobs_internal.job_start (job_id, at, era, run, worker, session_role)
            values (claim_from_job.job_id, this_moment, s.era, s.run, claim_from_job.worker,
                session_user);
        end if;
        wanted := wanted - cardinality(ids);
        exit when wanted = 0;
    end loop;
end
$$;
