-- The low-water marks: where a claim of a stage begins, so that it does not walk over the index
-- entries of all that was claimed before (they stay while any transaction is older than they).
-- Locks: nothing that exists; it only adds. Safe to run twice.
-- depends: 0003.indexes

-- "No batch of this stage that waits for nothing but its turn has a lower position, and none ever
-- will." Only added to; the highest counts. A stage without one is looked at from its beginning.
-- See sql/internal/move_mark.sql. It relies on positions that are drawn in ascending order over all
-- sessions: the sequence batch_id must not be given a CACHE.
create table if not exists pyjobs_internal.claim_mark (
    job_id bigint not null,
    pos    bigint not null,
    run    int not null,
    stage  smallint not null
);

-- Which mark is the highest?
create index if not exists claim_mark_of_stage on pyjobs_internal.claim_mark (job_id, run, stage,
    pos);
