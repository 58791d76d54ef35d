-- pyjobs_internal.claim_from_offers: lease batches of the jobs whose turn it is.
--   Highest priority first; among equals the job that has waited longest since it was served. Who
--   serves a job puts its offer to the end, if others wait. An offer that another claim holds at
--   this moment is being served: it is passed over for one that waits, but for every eighth time
--   (its holder may stay open), and taken when nothing else is there. So among equal jobs each is
--   served once before any is served twice, give or take one for each claim in flight.
--
--   worker       who claims
--   queues       which queues
--   max_jobs     of how many jobs at most; never more than 200 in one call
--   max_batches  how many batches of each at most
--   lease        for how long
-- Returns     the leased batches
-- Raises      nothing
-- Locks       offers, by SKIP LOCKED; then as claim_from_job, claim_from_jobs and settle_offers;
--             now and then it adds a mark (move_offer_mark), and notes the worker (note_worker)
-- Called by   claim_next_job, claim_jobs, record_and_claim
create or replace function pyjobs_internal.claim_from_offers(
    worker text, queues text[], max_jobs int, max_batches int, lease interval)
returns setof pyjobs.claimed_batch
language plpgsql
as $$
declare
    this_moment timestamptz := pyjobs_internal.clock();
    serving text[];
    level bigint := 2147483648;  -- a priority; at first above them all
    offer record;
    first record;          -- the offer that is tried first, and the jobs of the first few
    last_due timestamptz;  -- where the walk through a level stands
    last_id bigint;
    fetched int;
    chunk int;
    visits int;
    -- Each job takes two advisory locks: a call for very many would use up the server's lock table.
    wanted int := least(claim_from_offers.max_jobs, 200);
    vain int := 0;         -- jobs that were tried and gave nothing
    served bigint[] := '{}';
    mine boolean;          -- we hold the offer's row and move it
    passed bigint[];       -- jobs that others are serving
    passed_job bigint;
    waiting bigint[];      -- jobs, in order of their turn
    since timestamptz;     -- the first of their offers
    free bigint[];         -- those of which we hold an offer
    claimed bigint[];      -- batches
    given bigint[];        -- jobs that gave them
    taken pyjobs.claimed_batch;
begin
    loop
        -- The next that has a mark, unless one without lies above: what is before a mark is not
        -- walked over. It may turn out to be empty. And with it, to spare a statement, the queues
        -- that are not paused.
        select max(coalesce((
                select o.priority from pyjobs_internal.offer o
                where o.queue = q.name and o.priority < level
                    and o.priority > coalesce(marked.priority, -2147483649)
                order by o.queue, o.priority desc
                limit 1), marked.priority)), array_agg(q.name) into level, serving
        from unnest(claim_from_offers.queues) q (name)
        left join lateral (
            select m.priority from pyjobs_internal.offer_mark m
            where m.queue = q.name and m.priority < level
            order by m.queue, m.priority desc, m.id desc
            limit 1) marked on true
        where (select p.paused from pyjobs_internal.queue p where p.name = q.name) is not true;
        exit when level is null;

        chunk := 4;
        passed := '{}';
        -- Where one job is wanted: of the first few offers the first that nobody holds, or the only
        -- job's, in one statement, which tries them one after the other. What that leaves is found
        -- one by one.
        if wanted = 1 and cardinality(served) = 0 then
            with turn as materialized (
                select due.id, due.job_id, due.due_at, q.name as queue
                from unnest(serving) q (name)
                left join lateral (
                    select m.due_at, m.after_id from pyjobs_internal.offer_mark m
                    where m.queue = q.name and m.priority = level
                    order by m.queue, m.priority desc, m.id desc
                    limit 1) mark on true
                cross join lateral (
                    select o.id, o.job_id, o.due_at from pyjobs_internal.offer o
                    where o.queue = q.name and o.priority = level and o.due_at <= this_moment
                        and (o.due_at, o.id) > (coalesce(mark.due_at, '-infinity'),
                            coalesce(mark.after_id, 0))
                    order by o.queue, o.priority desc, o.due_at, o.id
                    limit 4) due
                order by due.due_at, due.id
                limit 4)
            select x.*, head.jobs into first
            from (select array(select t.job_id from turn t) as jobs offset 0) head
            left join lateral (
                select y.* from (
                    select t.id, t.job_id, t.due_at, t.queue,
                        case
                            -- Alone in its level: nobody to give way to, and nothing to write.
                            when cardinality(head.jobs) < 4 and t.job_id = all (head.jobs)
                            then false
                            when (select true from pyjobs_internal.offer o where o.id = t.id
                                  for update skip locked)
                            then true
                            when t.job_id = head.jobs[1]
                                and nextval('pyjobs_internal.offer_pass') % 8 = 0
                            then false
                        end as mine
                    from turn t
                    offset 0) y
                where y.mine is not null
                limit 1) x on true;
            -- Nothing is due.
            continue when cardinality(first.jobs) = 0;
            if first.id is null and cardinality(first.jobs) < 4 then
                -- All are held, and there are no more.
                passed := first.jobs;
                chunk := 0;
            elsif first.id is null then
                chunk := 32;
            else
                for taken in
                    select * from pyjobs_internal.claim_from_job(
                        first.job_id, claim_from_offers.worker, claim_from_offers.max_batches,
                            claim_from_offers.lease)
                loop
                    return next taken;
                end loop;
                if found then
                    perform pyjobs_internal.settle_offers(array[first.job_id], first.mine,
                        first.due_at, case when first.mine then first.id end, taken.run);
                    -- For about one in 64.
                    if pyjobs_internal.mark_due(taken.batch_id, 8) then
                        perform pyjobs_internal.move_offer_mark(first.queue, level::int);
                    end if;
                    wanted := 0;
                    exit;
                end if;
                vain := vain + 1;
                served := served || first.job_id;
                perform pyjobs_internal.settle_offers(array[first.job_id], false, first.due_at);
            end if;
        end if;

        -- One of each of many jobs: those at the head whose offers nobody holds, in a few
        -- statements. What that leaves is found one by one, and so is all after many in vain.
        if wanted > 1 and claim_from_offers.max_batches = 1 and vain < 100 then
            select coalesce(array_agg(w.job_id order by w.due_at, w.id), '{}'), min(w.due_at)
            into waiting, since
            from (
                select w.job_id, min(w.due_at) as due_at, min(w.id) as id from (
                    select due.job_id, due.due_at, due.id
                    from unnest(serving) q (name)
                    left join lateral (
                        select m.due_at, m.after_id from pyjobs_internal.offer_mark m
                        where m.queue = q.name and m.priority = level
                        order by m.queue, m.priority desc, m.id desc
                        limit 1) mark on true
                    cross join lateral (
                        select o.job_id, o.due_at, o.id from pyjobs_internal.offer o
                        where o.queue = q.name and o.priority = level and o.due_at <= this_moment
                            and (o.due_at, o.id) > (coalesce(mark.due_at, '-infinity'),
                                coalesce(mark.after_id, 0))
                        order by o.queue, o.priority desc, o.due_at, o.id
                        limit wanted) due
                    order by due.due_at, due.id
                    limit wanted) w
                where w.job_id <> all (served)
                group by w.job_id) w;
            if cardinality(waiting) > 1 then
                free := array(
                    select o.job_id from pyjobs_internal.offer o
                    where o.job_id = any (waiting)
                        and o.due_at >= since and o.due_at <= this_moment
                    for update skip locked);
                if nextval('pyjobs_internal.offer_pass') % 8 = 0 then
                    free := free || waiting[1];
                end if;
                free := array(select w.id from unnest(waiting) with ordinality w (id, no)
                              where w.id = any (free) order by w.no);
                claimed := pyjobs_internal.claim_from_jobs(
                    free, claim_from_offers.worker, claim_from_offers.lease);
                return query
                select b.job_id, b.run, b.id, b.lease_epoch, b.attempt, j.queue, s.key, j.params,
                    coalesce(b.items, jsonb_build_array(j.params)), b.lease_expires_at
                from pyjobs_internal.batch b
                join pyjobs_internal.job j on j.id = b.job_id
                join pyjobs_internal.stage s
                    on s.job_id = b.job_id and s.run = b.run and s.no = b.stage
                where b.id = any (claimed)
                order by array_position(claimed, b.id);
                given := array(
                    select b.job_id from pyjobs_internal.batch b where b.id = any (claimed));
                vain := vain + cardinality(free) - cardinality(given);
                if cardinality(given) > 0 then
                    perform pyjobs_internal.settle_offers(given, true, since);
                    if pyjobs_internal.mark_due(given[1], 8 * cardinality(given)) then
                        perform pyjobs_internal.move_offer_mark(j.queue, level::int)
                        from pyjobs_internal.job j where j.id = given[1];
                    end if;
                    served := served || given;
                    wanted := wanted - cardinality(given);
                    exit when wanted = 0;
                end if;
            end if;
        end if;

        last_due := '-infinity';
        last_id := 0;
        visits := 0;
        while chunk > 0 loop
            fetched := 0;
            for offer in
                select o.id, o.job_id, o.due_at, o.queue,
                       count(*) over () < chunk
                           and min(o.job_id) over () = max(o.job_id) over () as alone
                from (
                    select due.id, due.job_id, due.due_at, q.name as queue
                    from unnest(serving) q (name)
                    left join lateral (
                        select m.due_at, m.after_id,
                            (m.due_at, m.after_id) > (last_due, last_id) as ahead
                        from pyjobs_internal.offer_mark m
                        where m.queue = q.name and m.priority = level
                        order by m.queue, m.priority desc, m.id desc
                        limit 1) mark on true
                    cross join lateral (
                        select w.id, w.job_id, w.due_at from pyjobs_internal.offer w
                        where w.queue = q.name and w.priority = level and w.due_at <= this_moment
                            and (w.due_at, w.id) > (
                                case when mark.ahead then mark.due_at else last_due end,
                                case when mark.ahead then mark.after_id else last_id end)
                        order by w.queue, w.priority desc, w.due_at, w.id
                        limit chunk) due
                    order by due.due_at, due.id
                    limit chunk) o
                order by o.due_at, o.id
            loop
                fetched := fetched + 1;
                visits := visits + 1;
                last_due := offer.due_at;
                last_id := offer.id;

                -- A job may have more than one offer.
                continue when offer.job_id = any (served);
                -- A try takes advisory locks. After many in vain (thousands of jobs were paused or
                -- cancelled, say) look before it; later claims will withdraw what is left.
                if vain >= 100 then
                    continue when not exists (
                        select from pyjobs_internal.next_dues(array[offer.job_id]) n
                        where n.due <= this_moment);
                end if;

                -- Alone in its level: nobody to give way to, and nothing to write.
                mine := chunk > 4 or not offer.alone;
                if mine then
                    perform from pyjobs_internal.offer o where o.id = offer.id
                        for update skip locked;
                    mine := found;
                    if not mine and not (visits = 1 and chunk = 4
                        and nextval('pyjobs_internal.offer_pass') % 8 = 0) then
                        passed := passed || offer.job_id;
                        continue;
                    end if;
                end if;

                for taken in
                    select * from pyjobs_internal.claim_from_job(
                        offer.job_id, claim_from_offers.worker, claim_from_offers.max_batches,
                            claim_from_offers.lease)
                loop
                    return next taken;
                end loop;
                if found then
                    perform pyjobs_internal.settle_offers(array[offer.job_id], mine,
                        offer.due_at, case when mine then offer.id end, taken.run);
                    -- For about one in 64.
                    if pyjobs_internal.mark_due(taken.batch_id, 8) then
                        perform pyjobs_internal.move_offer_mark(offer.queue, level::int);
                    end if;
                    wanted := wanted - 1;
                    exit when wanted = 0;
                    served := served || offer.job_id;
                else
                    vain := vain + 1;
                    perform pyjobs_internal.settle_offers(array[offer.job_id], false,
                        offer.due_at);
                end if;
            end loop;
            exit when fetched < chunk or wanted = 0;
            chunk := 32;
        end loop;

        foreach passed_job in array passed loop
            exit when wanted = 0 or vain >= 100;
            continue when passed_job = any (served);
            return query select * from pyjobs_internal.claim_from_job(
                passed_job, claim_from_offers.worker, claim_from_offers.max_batches,
                    claim_from_offers.lease);
            if found then
                wanted := wanted - 1;
                served := served || passed_job;
                perform pyjobs_internal.settle_offers(array[passed_job], false,
                    '-infinity');
            else
                vain := vain + 1;
            end if;
        end loop;
        exit when wanted = 0;
    end loop;

    -- The look that note_worker begins with: nearly always there is nothing to write.
    perform from pyjobs_internal.worker w
    where w.name = claim_from_offers.worker and w.queues = claim_from_offers.queues
        and w.last_seen > this_moment - interval '5 seconds'
        and (wanted < least(claim_from_offers.max_jobs, 200)
            or w.last_empty_at > this_moment - interval '5 seconds');
    if not found then
        perform pyjobs_internal.note_worker(claim_from_offers.worker, claim_from_offers.queues,
            wanted = least(claim_from_offers.max_jobs, 200));
    end if;
end
$$;
