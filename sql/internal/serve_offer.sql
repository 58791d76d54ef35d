-- pyjobs_internal.serve_offer: what becomes of an offer after its job was served.
--
--   job_id    the job
--   offer_id  the offer, whose row we hold; null: another holds it, or no other job waits
-- Returns     nothing
-- Raises      nothing
-- Locks       the offer's row; where nothing is left, as settle_offer
-- Called by   claim_from_offers
create or replace function pyjobs_internal.serve_offer(job_id bigint, offer_id bigint)
returns void
language plpgsql
as $$
declare
    due timestamptz := pyjobs_internal.next_due(serve_offer.job_id);
begin
    if due is null or due > pyjobs_internal.clock() then
        perform pyjobs_internal.settle_offer(serve_offer.job_id);
    elsif serve_offer.offer_id is not null then
        -- Its priority too: whoever made this offer may have read an older one.
        update pyjobs_internal.offer o
        set due_at = pyjobs_internal.clock(), priority = j.priority
        from pyjobs_internal.job j
        where o.id = serve_offer.offer_id and j.id = serve_offer.job_id;
    end if;
end
$$;
