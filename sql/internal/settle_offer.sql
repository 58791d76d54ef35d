-- pyjobs_internal.settle_offer: withdraw the offers of a job that has nothing to claim, or put them
-- off until it has.
--   Called by who came for work and found none, or took the last. See offer_job for why nothing is
--   lost: with the exclusive lock nobody who makes a batch claimable is in flight, so that a fresh
--   look sees them all.
--
--   job_id   the job
-- Returns     nothing
-- Raises      nothing
-- Locks       the offer's advisory lock, exclusively, by try; the job's offers that are free
-- Called by   claim_from_offers, serve_offer, cancel_job
create or replace function pyjobs_internal.settle_offer(job_id bigint)
returns void
language plpgsql
as $$
declare
    due timestamptz;
    mine bigint[];
begin
    if not pg_try_advisory_xact_lock(pyjobs_internal.offer_key(settle_offer.job_id)) then
        return;
    end if;
    -- The offers first: one that is made while we look belongs to work that we may not have seen.
    mine := array(select o.id from pyjobs_internal.offer o where o.job_id = settle_offer.job_id
                  order by o.due_at, o.id for update skip locked);
    due := pyjobs_internal.next_due(settle_offer.job_id);
    if due is null then
        delete from pyjobs_internal.offer o where o.id = any (mine);
    else
        -- One is enough, the earliest.
        delete from pyjobs_internal.offer o where o.id = any (mine[2:]);
        update pyjobs_internal.offer o
        set due_at = due
        where o.id = mine[1] and due > o.due_at and due > pyjobs_internal.clock();
    end if;
end
$$;
