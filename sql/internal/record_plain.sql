-- pyjobs_internal.record_plain: record batches each of which is all that its job has (is_plain),
-- and end those jobs, in a few statements.
--   Nobody else has a batch of these jobs in hand, so that there is nobody to wait for, and no
--   counts to add up. A job that has changed meanwhile, by a cancel say, is looked after as others
--   are.
--
--   batch_ids     leased at this moment, under these epochs, as the caller has seen
--   lease_epochs  the nth is the nth batch's
--   counters      null: none have any; else the nth is the nth batch's
-- Returns     the batches that it recorded
-- Raises      as advance_job
-- Locks       the batches' rows, ordered by job; the jobs' enders, by SKIP LOCKED; the jobs'
--             rows, ascending; then as look_after for those that have changed
-- Called by   record_batches
create or replace function pyjobs_internal.record_plain(batch_ids bigint[], lease_epochs bigint[],
    counters jsonb[])
returns bigint[]
language plpgsql
as $$
declare
    this_moment timestamptz := pyjobs_internal.clock();
    ids bigint[];
    jobs bigint[];
    b record;
begin
    -- By their ids alone: with the state, a plan made when few were leased walks the index of all
    -- that are.
    perform from pyjobs_internal.batch o
    where o.id = any (record_plain.batch_ids)
    order by o.job_id, o.id
    for update;
    -- Not joined with what is given, which the server would look through for each batch: "in ... is
    -- true" is looked up in a hash table.
    with recorded as (
        update pyjobs_internal.batch o
        set state = 'recorded', closed_at = this_moment, lease_expires_at = null,
            counters = nullif(record_plain.counters[
                array_position(record_plain.batch_ids, o.id)], '{}')
        where o.id = any (record_plain.batch_ids) and o.lease_expires_at is not null
            and ((o.id, o.lease_epoch) in (
                select l.id, l.epoch
                from unnest(record_plain.batch_ids, record_plain.lease_epochs) l (id, epoch))
                ) is true
        returning o.id)
    select coalesce(array_agg(r.id), '{}') into ids from recorded r;

    jobs := array(
        select ender.job_id
        from pyjobs_internal.batch o
        cross join lateral (
            select s.job_id from pyjobs_internal.stage s
            where s.job_id = o.job_id and s.run = o.run and s.no = 1
            for update skip locked) ender
        where o.id = any (ids));
    jobs := array(
        select j.id from pyjobs_internal.job j
        join pyjobs_internal.job_state state on state.status = j.status
        where j.id = any (jobs) and state.finalizable
        order by j.id
        for update of j);
    update pyjobs_internal.stage s
    set done = true, open = true, total = o.item_count, succeeded = o.item_count, failed = 0,
        counters = coalesce(o.counters, '{}')
    from pyjobs_internal.batch o
    where o.id = any (ids)
        and s.job_id = any (jobs) and s.job_id = o.job_id and s.run = o.run and s.no = 1;
    delete from pyjobs_internal.claim_mark m where m.job_id = any (jobs);
    -- A lease was out, so they were claimed.
    update pyjobs_internal.job j
    set status = 'SUCCESS', finished_at = this_moment, finished_by = o.worker,
        finished_role = session_user,
        finished_from = 'STARTED',
        finished_reason = 'the last batch is closed'
    from pyjobs_internal.batch o
    where o.id = any (ids) and j.id = any (jobs) and j.id = o.job_id;

    -- A batch a job: none has changed.
    if cardinality(jobs) = cardinality(ids) then
        return ids;
    end if;
    for b in
        select o.job_id, o.worker from pyjobs_internal.batch o
        where o.id = any (ids) and o.job_id <> all (jobs)
        order by o.job_id
    loop
        perform pyjobs_internal.look_after(b.job_id, false, b.worker);
    end loop;
    return ids;
end
$$;
