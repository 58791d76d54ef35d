-- The low-water marks of offers: where a claim that may take any job begins to look, so that it
-- does not walk over the index entries of all offers that were served or withdrawn before (they
-- stay while any transaction is older than they, and after that until a vacuum). And a job's offers
-- are found by time, so that neither does who looks for them walk over all their former places.
-- Locks: writers of offer while its index is built, which is short as the offers are few; then
-- offer, exclusively and briefly, in a transaction of its own. Whoever waits for such a lock makes
-- all others wait, so it waits for a second at a time. Safe to run twice.
-- transactional: false
-- depends: 0009.storage

-- "No offer of this queue and priority comes before due_at and after_id (included), in order of
-- service, and none ever will." Only added to; the newest counts. A level without one is looked at
-- from its beginning. seen_at and xid are what the next one goes by: who is to give an offer a time
-- before seen_at has an older xid. See sql/internal/move_offer_mark.sql.
create table if not exists pyjobs_internal.offer_mark (
    id       bigint generated always as identity primary key,
    due_at   timestamptz not null,
    after_id bigint not null,
    seen_at  timestamptz not null,
    xid      xid8 not null,
    priority int not null,
    queue    text not null
);

-- Which levels of a queue have marks, and which is the newest?
create index if not exists offer_mark_of_level on pyjobs_internal.offer_mark (queue,
    priority desc, id desc);

-- Which offers has this job, from when on?
do $$
begin
    for attempt in 1 .. 300 loop
        begin
            perform set_config('lock_timeout', '1s', true);
            create index if not exists offer_of_job_by_time on pyjobs_internal.offer
                (job_id, due_at);
            exit;
        exception when lock_not_available then
            if attempt = 300 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end
$$;

do $$
begin
    for attempt in 1 .. 300 loop
        begin
            perform set_config('lock_timeout', '1s', true);
            drop index if exists pyjobs_internal.offer_of_job;
            exit;
        exception when lock_not_available then
            if attempt = 300 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end
$$;
