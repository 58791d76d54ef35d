-- pyjobs_internal.settle_offers: what becomes of the offers of jobs that were just served, or that
-- had nothing to claim.
--   Where nothing is left they are withdrawn, or put off until there is. See offer_job for why
--   nothing is lost: with the exclusive lock nobody who makes a batch claimable is in flight, so
--   that a fresh look sees them all. Where there is more they go to the end of the turn, those that
--   were made at the same time together; where there are more than a few, one is kept. That lock is
--   taken for no other job: whoever makes a batch claimable while it is held adds an offer.
--
--   job_ids  the jobs, each once
--   move     true: others wait, and we hold an offer of each; false: who has more stays where he is
-- Returns     nothing
-- Raises      nothing
-- Locks       of jobs that have nothing now, or more than a few offers: the offers' advisory
--             locks, exclusively, by try; the jobs' offers that are free; without move, of those
--             jobs only that have nothing now
-- Called by   claim_from_offers, cancel_job
create or replace function pyjobs_internal.settle_offers(job_ids bigint[], move boolean)
returns void
language plpgsql
as $$
declare
    this_moment timestamptz := pyjobs_internal.clock();
    jobs bigint[] := settle_offers.job_ids;
    going bigint[];  -- jobs that have something now
    locked bigint[];
    ours bigint[];
    surplus bigint[];
    later bigint[];
    dues timestamptz[];
    moved bigint[];
begin
    going := array(
        select n.job_id from pyjobs_internal.next_dues(jobs) n where n.due <= this_moment);
    if not settle_offers.move then
        jobs := array(select w.id from unnest(jobs) w (id) where w.id <> all (going));
        if cardinality(jobs) = 0 then
            return;
        end if;
    end if;

    -- One condition: of two the server tries the cheaper one first, which is the lock.
    locked := array(
        select w.id from unnest(jobs) w (id)
        where case when w.id = any (going)
                and (select count(*) from pyjobs_internal.offer o where o.job_id = w.id) <= 4
            then false
            else pg_try_advisory_xact_lock(pyjobs_internal.offer_key(w.id)) end);
    -- The offers first: one that is made while we look belongs to work that we may not have seen.
    ours := array(select o.id from pyjobs_internal.offer o where o.job_id = any (jobs)
                  for update skip locked);
    select array_agg(w.id) filter (where w.surplus),
           array_agg(w.id) filter (where w.due > w.due_at and not w.goes_on and not w.surplus),
           array_agg(w.due) filter (where w.due > w.due_at and not w.goes_on and not w.surplus),
           array_agg(w.id) filter (where w.goes_on and w.due_at <= this_moment and not w.surplus)
    into surplus, later, dues, moved
    from (
        select o.*, o.locked and (o.due is null or o.no > 1 and (not o.goes_on or o.how_many > 4))
            as surplus
        from (
            select p.id, p.due_at, n.due, p.job_id = any (locked) as locked,
                case when p.job_id = any (locked) then coalesce(n.due <= this_moment, false)
                    else p.job_id = any (going) end as goes_on,
                row_number() over (partition by p.job_id order by p.due_at, p.id) as no,
                count(*) over (partition by p.job_id) as how_many
            from (select f.* from pyjobs_internal.offer f where f.id = any (ours) offset 0) p
            left join pyjobs_internal.next_dues(locked) n on n.job_id = p.job_id) o
        where o.locked or o.goes_on) w;

    -- By their ids alone: a join's plan, made when there were few, walks over all.
    if surplus is not null then
        delete from pyjobs_internal.offer o where o.id = any (surplus);
    end if;
    if later is not null then
        update pyjobs_internal.offer o
        set due_at = dues[array_position(later, o.id)]
        where o.id = any (later);
    end if;
    if settle_offers.move and moved is not null then
        -- Their priority too: whoever made an offer may have read an older one.
        update pyjobs_internal.offer o
        set due_at = this_moment, priority = j.priority
        from pyjobs_internal.job j
        where o.id = any (moved) and j.id = o.job_id;
    end if;
end
$$;
