-- A tour of pyjobs in psql. Paste it piece by piece, or run it whole:
--
--     psql "$PYJOBS_DATABASE_URL" -v ON_ERROR_STOP=1 -f docs/tour.sql
--
-- It needs a migrated database and a role that may do everything, as its owner may. No database at
-- hand: `pyjobs demo --keep` leaves one up and prints the psql line for it. Nothing here is made up
-- for the tour: workers in any language call the same functions.

\set QUIET on
\set SHOW_CONTEXT never
\pset pager off
\pset format wrapped
\pset columns 100
\pset null '-'
\pset footer off

\echo '1. A job: five pictures, two in a batch.'
-- The answer is its id; \gset keeps it in :job.
select pyjobs.enqueue_job('tour', '["m31", "m33", "m42", "m45", "m51"]',
    params => '{"telescope": "one"}', batch_size => 2, name => 'five pictures') as job \gset
select id, name, status, run, stages from pyjobs.job where id = :job;

\echo '2. Why does nothing happen?'
-- Whatever holds a job up, this says it, what shows it, and what to do.
select * from pyjobs.explain_job(:job);

\echo '3. Ada, a worker, claims a batch.'
-- Who has its id and its lease epoch may record it, for a minute. params are the job's.
select * from pyjobs.claim_next_job('ada', '{tour}', lease => '1 minute') \gset ada_
select :ada_batch_id as batch, :ada_lease_epoch as epoch, :'ada_stage' as stage,
    :'ada_items' as items, :'ada_params' as params;

\echo '4. Her own rows and the record are one transaction: both are there afterwards, or neither.'
create temporary table if not exists found (picture text, stars int);
truncate found;
begin;
insert into found values ('m31', 12), ('m33', 7);
select * from pyjobs.record_batch(:ada_batch_id, :ada_lease_epoch, counters => '{"stars": 19}');
commit;

\echo '5. Bob takes the next batch, and gives it back.'
-- With an error it costs the batch one of its attempts; without, it would be free.
select batch_id, lease_epoch from pyjobs.claim_next_job('bob', '{tour}') \gset bob_
select pyjobs.release_batch(:bob_batch_id, :bob_lease_epoch, error => 'out of memory') as job_is;

\echo '6. Bob posts a result after all. His lease is over: it raises, and his rows are gone with it.'
-- The error is what this step is after, so psql is told to go on behind it.
\set stop :ON_ERROR_STOP
\set ON_ERROR_STOP off
begin;
insert into found values ('m42', 1000000);
select * from pyjobs.record_batch(:bob_batch_id, :bob_lease_epoch);
rollback;
\set ON_ERROR_STOP :stop
select count(*) as rows_of_the_late_result from found where picture = 'm42';

\echo '7. Ada takes all that is left, two batches in one call.'
select array_agg(batch_id order by jsonb_array_length(items)) as batches,
    array_agg(lease_epoch order by jsonb_array_length(items)) as epochs
from pyjobs.claim_next_batch(:job, 'ada', max_batches => 2) \gset
select * from pyjobs.explain_job(:job);

\echo '8. Three pictures fail. That is a result, not a crash: it is recorded.'
-- The nth array of failed is the nth batch's. The last one out ends the job, in this transaction.
select * from pyjobs.record_batches(:'batches', :'epochs',
    failed => '[[{"index": 0, "error": "clouds"}],
                [{"index": 0, "error": "clouds"}, {"index": 1, "error": "a plane"}]]');

\echo '9. How it went: more than half of the items failed, so the job did.'
select j.status, s.*
from pyjobs.job j, pyjobs.job_progress(j.id) p, jsonb_to_recordset(p -> 'stages')
    s (key text, progress numeric, total int, processed int, failed int, counters jsonb)
where j.id = :job;
select e.* from pyjobs.job_progress(:job) p, jsonb_to_recordset(p -> 'errors')
    e (stage text, item jsonb, error text);

\echo '10. Try again what failed, and only that: the next run of the same job.'
select pyjobs.retry_job(:job, failed_only => true) as job_is;
select batch_id, lease_epoch, items from pyjobs.claim_next_batch(:job, 'ada', max_batches => 9);
-- Recorded by what the view of all batches shows.
select r.* from pyjobs.batch b, pyjobs.record_batch(b.id, b.lease_epoch, '[]', '{"stars": 5}') r
where b.job_id = :job and b.state = 'leased' order by b.id;

\echo '11. The progress document counts this run; what the first one had done stands beside it.'
\pset format unaligned
select jsonb_pretty(pyjobs.job_progress(:job)) as job_progress;
\pset format wrapped

\echo '12. Cancel: another job, which Ada has a batch of.'
select pyjobs.enqueue_job('tour', '["m57", "m81", "m101"]', name => 'three more') as job2 \gset
select batch_id, lease_epoch from pyjobs.claim_next_batch(:job2, 'ada') \gset ada_
-- Nothing more is claimed, at once. What is leased may still be recorded, for this long.
select pyjobs.cancel_job(:job2, 'wrong telescope', grace => '20 seconds') as job_is;
select count(*) as can_be_claimed from pyjobs.claim_next_batch(:job2, 'bob', max_batches => 9);
select * from pyjobs.explain_job(:job2);

\echo '13. Ada learns of it when she extends her lease, and hands in what she has. So it ends.'
select job_status from pyjobs.extend_lease(:ada_batch_id, :ada_lease_epoch, '1 minute');
select * from pyjobs.record_batch(:ada_batch_id, :ada_lease_epoch);

\echo '14. Who did what to it, when and why.'
select at::time(0), run, from_status, to_status, by, reason from pyjobs.job_history(:job2);

\echo '15. Does it all add up? Every number, recomputed from the ledger: no rows, nothing differs.'
select * from pyjobs.audit_job();

\echo '16. And in general: the queues, and who works them.'
select queue, paused, waiting_jobs, running_jobs, pending_batches, workers from pyjobs.queue_stats()
where queue = 'tour';
select worker, queues, leased_batches from pyjobs.active_workers() where 'tour' = any (queues);

\set QUIET off
