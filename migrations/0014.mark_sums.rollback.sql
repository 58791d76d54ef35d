-- Progress is counted over the whole ledger again: nothing is lost.
-- Locks: claim_mark, exclusively, while an index is built.
create index if not exists claim_mark_of_stage on pyjobs_internal.claim_mark (job_id, run, stage,
    pos);
drop index if exists pyjobs_internal.claim_mark_newest;
alter table if exists pyjobs_internal.claim_mark
    drop column if exists summed_to,
    drop column if exists still_open,
    drop column if exists succeeded,
    drop column if exists failed,
    drop column if exists counters,
    drop column if exists total_to,
    drop column if exists total;
