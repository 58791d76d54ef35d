-- pyjobs_internal.end_simple: end a simple_job whose last open batch was just recorded, in a few
-- statements.
--   What advance_job does where nobody is in the way: what another has closed and not committed is
--   seen as open, so that where none is seen all others have committed, and there is nobody to wait
--   for. Where one is open, an item has failed, or the job has changed meanwhile, by a cancel say,
--   nothing is changed: look after it as after others.
--
--   batch_id, job_id, run  recorded by the caller in this transaction, no item failed
--   item_count, counters   of the batch
--   worker                 who had it, for the history
-- Returns     whether it ended the job
-- Raises      nothing
-- Locks       the job's ender, by SKIP LOCKED; the job's row
-- Called by   close_batch
create or replace function pyjobs_internal.end_simple(batch_id bigint, job_id bigint, run int,
    item_count int, counters jsonb, worker text)
returns boolean
language plpgsql
as $$
declare
    more boolean;           -- it is not all that the job has
    whole record;           -- what the job has come to
begin
    select exists (
        select from pyjobs_internal.batch o
        where o.job_id = end_simple.job_id and o.run = end_simple.run
            and o.id <> end_simple.batch_id)
    into more
    from pyjobs_internal.stage s
    where s.job_id = end_simple.job_id and s.run = end_simple.run and s.no = 1
        and exists (select from pyjobs_internal.simple_job(end_simple.job_id, end_simple.run))
        and not exists (
            select from pyjobs_internal.batch o
            where o.job_id = end_simple.job_id and o.run = end_simple.run and o.stage = 1
                and o.closed_at is null)
    for update of s skip locked;
    if not found then
        return false;
    end if;

    if more then
        select c.total, c.failed, c.counters into whole
        from pyjobs_internal.stage_counts(end_simple.job_id, end_simple.run, 1::smallint) c;
        if whole.failed > 0 then
            return false;
        end if;
    else
        select end_simple.item_count::bigint as total, end_simple.counters into whole;
        if end_simple.counters <> '{}' then
            select jsonb_object_agg(c.key, trim_scale(c.value::numeric)) into whole.counters
            from jsonb_each_text(end_simple.counters) c;
        end if;
    end if;

    -- A lease was out, so it was claimed.
    update pyjobs_internal.job j
    set status = 'SUCCESS', finished_at = pyjobs_internal.clock(),
        finished_by = end_simple.worker, finished_role = session_user,
        finished_from = 'STARTED',
        finished_reason = 'the last batch is closed'
    where j.id = end_simple.job_id
        and (select s.finalizable from pyjobs_internal.job_state s where s.status = j.status);
    if not found then
        return false;
    end if;

    -- Its row is locked already.
    update pyjobs_internal.stage s
    set done = true, open = true, total = whole.total, succeeded = whole.total, failed = 0,
        counters = whole.counters
    where s.job_id = end_simple.job_id and s.run = end_simple.run and s.no = 1;
    delete from pyjobs_internal.claim_mark m where m.job_id = end_simple.job_id;
    return true;
end
$$;
