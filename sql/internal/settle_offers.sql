-- pyjobs_internal.settle_offers: what becomes of the offers of jobs that were just served, or that
-- had nothing to claim.
--   Where nothing is left they are withdrawn, or put off until there is. See offer_job for why
--   nothing is lost: with the exclusive lock nobody who makes a batch claimable is in flight, so
--   that a fresh look sees them all. Where there is more they go to the end of the turn, those that
--   were made at the same time together; where there are more than a few, one is kept. That lock is
--   taken for no other job: whoever makes a batch claimable while it is held adds an offer.
--
--   job_ids  the jobs, each once
--   move     true: others wait, and we hold an offer of each, or take what is free; false: who has
--            more stays where he is
--   since    no offer of theirs that is due before is looked at: it may stay, and do no harm.
--            Otherwise this walks over all places that the jobs' offers ever had
--   held     with run and move: the offer that we hold; else null
--   run      of one job, of which the caller has just claimed something in this run; else null
-- Returns     nothing
-- Raises      nothing
-- Locks       of jobs that have nothing now, or more than a few offers: the offers' advisory
--             locks, exclusively, by try; the jobs' offers that are free; without move, of those
--             jobs only that have nothing now
-- Called by   claim_from_offers, cancel_job
create or replace function pyjobs_internal.settle_offers(
    job_ids bigint[], move boolean, since timestamptz, held bigint default null,
    run int default null)
returns void
language plpgsql
as $$
declare
    this_moment timestamptz := pyjobs_internal.offer_time();
    going bigint[];   -- jobs that have something now
    others bigint[];  -- those that have not, or too many offers
    one boolean;      -- there is one of them
    several boolean;  -- there are more offers than that we hold
    ours bigint[];
    n int;
    surplus bigint[];
    later bigint[];
    dues timestamptz[];
    moved bigint[];
begin
    -- From the highest position down: what was claimed lately lies at the other end. Neither here
    -- nor below "exists": as a join, planned when there were few, it walks over all jobs.
    if settle_offers.run is not null then
        -- The usual case. The job could be claimed a moment ago: only what waits is looked for. If
        -- it was stopped since, its offer stays until a claim tries it in vain.
        perform from pyjobs_internal.stage s
        cross join lateral (
            select from pyjobs_internal.batch b
            where b.job_id = s.job_id and b.run = s.run and b.stage = s.no
                and b.state = 'pending' and b.due_at <= this_moment
                and (b.due_at, b.pos) >= ('-infinity', coalesce((
                    select m.pos from pyjobs_internal.claim_mark m
                    where m.job_id = s.job_id and m.run = s.run and m.stage = s.no
                    order by m.job_id desc, m.run desc, m.stage desc, m.pos desc
                    limit 1), 0))
            order by b.job_id desc, b.run desc, b.stage desc, b.due_at desc, b.pos desc
            limit 1) last
        where s.job_id = settle_offers.job_ids[1] and s.run = settle_offers.run
            and s.open and not s.done
        limit 1;
        if found then
            if settle_offers.held is null then
                return;
            end if;
            -- As below. We have held it since an earlier statement.
            update pyjobs_internal.offer o
            set id = default, due_at = this_moment,
                priority = (select j.priority from pyjobs_internal.job j where j.id = o.job_id)
            where o.id = settle_offers.held
            returning exists (
                select from pyjobs_internal.offer f
                where f.job_id = o.job_id and f.id <> settle_offers.held
                    and f.due_at >= settle_offers.since and f.due_at <= this_moment) into several;
            if several is false then
                return;
            end if;
        end if;
    end if;

    if settle_offers.run is not null and several is null then
        going := '{}';
    else
        going := array(
            select w.id from unnest(settle_offers.job_ids) w (id)
            where (
                select true from pyjobs_internal.job j
                join pyjobs_internal.stage s
                    on s.job_id = j.id and s.run = j.run and s.open and not s.done
                cross join lateral (
                    select from pyjobs_internal.batch b
                    where b.job_id = j.id and b.run = j.run and b.stage = s.no
                        and b.state = 'pending' and b.due_at <= this_moment
                        and (b.due_at, b.pos) >= ('-infinity', coalesce((
                            select m.pos from pyjobs_internal.claim_mark m
                            where m.job_id = j.id and m.run = j.run and m.stage = s.no
                            order by m.job_id desc, m.run desc, m.stage desc, m.pos desc
                            limit 1), 0))
                    order by b.job_id desc, b.run desc, b.stage desc, b.due_at desc, b.pos desc
                    limit 1) last
                where j.id = w.id and not j.paused and j.run_at <= this_moment
                    and (
                        select t.claimable from pyjobs_internal.job_state t
                        where t.status = j.status)
                limit 1));
    end if;
    if cardinality(going) = 0 then
        others := settle_offers.job_ids;
    else
        if settle_offers.move then
            ours := array(
                select f.id from pyjobs_internal.offer f
                where f.job_id = any (going)
                    and f.due_at >= settle_offers.since and f.due_at <= this_moment
                for update skip locked);
            -- Their priority too: whoever made an offer may have read an older one, and who sets it
            -- may have come before our lock: so in a statement of its own. And a new id: the server
            -- makes sure that an id is the only one, and would walk over all that it was before.
            update pyjobs_internal.offer o
            set id = default, due_at = this_moment,
                priority = (select j.priority from pyjobs_internal.job j where j.id = o.job_id)
            where o.id = any (ours);
            if cardinality(ours) > cardinality(going) then
                others := array(
                    select o.job_id from pyjobs_internal.offer o
                    where o.job_id = any (going)
                    group by o.job_id
                    having count(*) > 4);
            end if;
        end if;
        if cardinality(going) < cardinality(settle_offers.job_ids) then
            others := others || array(
                select w.id from unnest(settle_offers.job_ids) w (id) where w.id <> all (going));
        end if;
        if others is null or cardinality(others) = 0 then
            return;
        end if;
    end if;

    -- The lock, and the offers, before we look: an offer that is made while we look belongs to work
    -- that we may not have seen. Of one job the offers in the same statement: what made an offer
    -- that it sees, it sees too. Of many one condition: of two the server may try the lock first.
    one := cardinality(others) = 1;
    if one then
        if not pg_try_advisory_xact_lock(pyjobs_internal.offer_key(others[1])) then
            return;
        end if;
    else
        ours := array(
            select o.id from pyjobs_internal.offer o
            where o.job_id = any (others) and o.due_at >= settle_offers.since
                and case when o.job_id = any (others)
                    then pg_try_advisory_xact_lock(pyjobs_internal.offer_key(o.job_id)) end
            for update skip locked);
    end if;
    delete from pyjobs_internal.offer o
    where o.id = any (case when one then array(
            select f.id from pyjobs_internal.offer f
            where f.job_id = others[1] and f.due_at >= settle_offers.since
            for update skip locked) else ours end) and (
        select true from pyjobs_internal.job j
        join pyjobs_internal.stage s
            on s.job_id = j.id and s.run = j.run and s.open and not s.done
        cross join lateral (
            select from pyjobs_internal.batch b
            where b.job_id = j.id and b.run = j.run and b.stage = s.no
                and b.state = 'pending'
                and (b.due_at, b.pos) >= ('-infinity', coalesce((
                    select m.pos from pyjobs_internal.claim_mark m
                    where m.job_id = j.id and m.run = j.run and m.stage = s.no
                    order by m.job_id desc, m.run desc, m.stage desc, m.pos desc
                    limit 1), 0))
            order by b.job_id desc, b.run desc, b.stage desc, b.due_at desc, b.pos desc
            limit 1) last
        where j.id = o.job_id and not j.paused
            and (select t.claimable from pyjobs_internal.job_state t where t.status = j.status)
        limit 1) is null;
    get diagnostics n = row_count;
    if one and n = 0 then
        ours := array(
            select o.id from pyjobs_internal.offer o
            where o.job_id = others[1] and o.due_at >= settle_offers.since
            for update skip locked);
    end if;
    if one and n > 0 or n = cardinality(ours) then
        return;
    end if;

    -- Something waits for a time, or has come just now.
    select array_agg(w.id) filter (where w.surplus),
           array_agg(w.id) filter (where w.due > w.due_at and not w.goes_on and not w.surplus),
           array_agg(w.due) filter (where w.due > w.due_at and not w.goes_on and not w.surplus),
           array_agg(w.id) filter (where w.goes_on and w.due_at <= this_moment and not w.surplus)
    into surplus, later, dues, moved
    from (
        select o.*, o.due is null or o.no > 1 and (not o.goes_on or o.how_many > 4) as surplus
        from (
            select p.id, p.due_at, n.due, coalesce(n.due <= this_moment, false) as goes_on,
                row_number() over (partition by p.job_id order by p.due_at, p.id) as no,
                count(*) over (partition by p.job_id) as how_many
            from (select f.* from pyjobs_internal.offer f where f.id = any (ours) offset 0) p
            left join pyjobs_internal.next_dues(others) n on n.job_id = p.job_id) o) w;
    if surplus is not null then
        delete from pyjobs_internal.offer o where o.id = any (surplus);
    end if;
    if later is not null then
        update pyjobs_internal.offer o
        set id = default, due_at = dues[array_position(later, o.id)]
        where o.id = any (later);
    end if;
    if settle_offers.move and moved is not null then
        update pyjobs_internal.offer o
        set id = default, due_at = this_moment,
            priority = (select j.priority from pyjobs_internal.job j where j.id = o.job_id)
        where o.id = any (moved);
    end if;
end
$$;
