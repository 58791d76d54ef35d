-- pyjobs_internal.end_plain: end a job of which the one batch that it has (only_batch) was just
-- recorded, in a few statements.
--   As record_plain does for many. Where the job has more, or has changed meanwhile, by a cancel
--   say, nothing is changed: look after it as after others.
--
--   batch_id, job_id, run  recorded by the caller in this transaction, no item failed
--   item_count, counters   of the batch
--   worker                 who had it, for the history
-- Returns     whether it ended the job
-- Raises      nothing
-- Locks       the job's ender, by SKIP LOCKED; the job's row
-- Called by   close_batch
create or replace function pyjobs_internal.end_plain(batch_id bigint, job_id bigint, run int,
    item_count int, counters jsonb, worker text)
returns boolean
language plpgsql
as $$
declare
    sums jsonb := '{}';
begin
    perform from pyjobs_internal.stage s
    where s.job_id = end_plain.job_id and s.run = end_plain.run and s.no = 1
        and exists (
            select from pyjobs_internal.only_batch(end_plain.batch_id, end_plain.job_id,
                end_plain.run))
    for update skip locked;
    if not found then
        return false;
    end if;

    -- A lease was out, so it was claimed.
    update pyjobs_internal.job j
    set status = 'SUCCESS', finished_at = pyjobs_internal.clock(),
        finished_by = end_plain.worker, finished_role = session_user,
        finished_from = 'STARTED',
        finished_reason = 'the last batch is closed'
    where j.id = end_plain.job_id
        and (select s.finalizable from pyjobs_internal.job_state s where s.status = j.status);
    if not found then
        return false;
    end if;

    if end_plain.counters <> '{}' then
        select jsonb_object_agg(c.key, trim_scale(c.value::numeric)) into sums
        from jsonb_each_text(end_plain.counters) c;
    end if;
    -- Its row is locked already.
    update pyjobs_internal.stage s
    set done = true, open = true, total = end_plain.item_count, succeeded = end_plain.item_count,
        failed = 0, counters = sums
    where s.job_id = end_plain.job_id and s.run = end_plain.run and s.no = 1;
    delete from pyjobs_internal.claim_mark m where m.job_id = end_plain.job_id;
    return true;
end
$$;
