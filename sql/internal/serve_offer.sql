-- pyjobs_internal.serve_offer: what becomes of a job's offers after it was served.
--   Offers that were made at the same time go to the end together, so that the job's turn is one;
--   where there are more than a few, one is kept.
--
--   job_id   the job
--   move     true: others wait, and we hold one of its offers; it goes to the end of the turn
-- Returns     nothing
-- Raises      nothing
-- Locks       the job's offers that are free; where nothing is left, or too many are, the offer's
--             advisory lock, exclusively, by try
-- Called by   claim_from_offers
create or replace function pyjobs_internal.serve_offer(job_id bigint, move boolean)
returns void
language plpgsql
as $$
declare
    due timestamptz := pyjobs_internal.next_due(serve_offer.job_id);
    this_moment timestamptz := pyjobs_internal.clock();
    ours bigint[];
begin
    if due is null or due > this_moment then
        perform pyjobs_internal.settle_offer(serve_offer.job_id);
    elsif serve_offer.move then
        ours := array(select o.id from pyjobs_internal.offer o
                      where o.job_id = serve_offer.job_id and o.due_at <= this_moment
                      order by o.id for update skip locked);
        if cardinality(ours) > 4
            and pg_try_advisory_xact_lock(pyjobs_internal.offer_key(serve_offer.job_id))
        then
            delete from pyjobs_internal.offer o where o.id = any (ours[2:]);
        end if;
        -- Their priority too: whoever made an offer may have read an older one.
        update pyjobs_internal.offer o
        set due_at = this_moment, priority = j.priority
        from pyjobs_internal.job j
        where o.id = any (ours) and j.id = serve_offer.job_id;
    end if;
end
$$;
