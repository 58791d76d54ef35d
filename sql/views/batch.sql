-- pyjobs.batch: every batch of every run, one row each: the ledger as people see it.
--   stage is the stage's key. due_at is when a batch that waits for a retry may be claimed again.
--   succeeded_count and failed_count are items, and 0 until the batch is closed. items is null
--   where the one item is the job's params; failed is null where none failed; error is why it was
--   given back or lost, last. The join makes the view refuse every write.
-- Read by     roles pyjobs_reader and pyjobs_operator
create or replace view pyjobs.batch as
select
    b.id,
    b.job_id,
    b.run,
    s.key as stage,
    b.state,
    b.attempt,
    b.lease_epoch,
    b.worker,
    b.lease_expires_at,
    nullif(b.due_at, '-infinity') as due_at,
    b.item_count,
    case when b.state = 'recorded' then b.item_count - b.failed_count else 0 end as succeeded_count,
    b.failed_count,
    b.items,
    b.failed,
    b.counters,
    b.error,
    b.leased_at,
    b.closed_at
from pyjobs_internal.batch b
left join pyjobs_internal.stage s on s.job_id = b.job_id and s.run = b.run and s.no = b.stage;

comment on view pyjobs.batch is 'Every batch: its stage, state, lease and result.';
