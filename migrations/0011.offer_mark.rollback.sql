-- Claims look at each queue from its beginning again: nothing is lost.
-- Locks: offer, exclusively, while an index is built; the table that goes.
drop index if exists pyjobs_internal.offer_of_job_by_time;
create index if not exists offer_of_job on pyjobs_internal.offer (job_id);
drop table if exists pyjobs_internal.offer_mark;
