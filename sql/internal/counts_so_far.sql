-- pyjobs_internal.counts_so_far: what the ledger says about one stage of a run that is under way,
-- from what its newest mark says and from what was closed, taken or added since.
--   The same as stage_counts, which it falls back to where the stage has no sums yet; but on a big
--   job it reads some hundreds of batches, and not all. See move_mark and closed_between for why
--   the sums are true.
--
--   job_id, run, stage   the stage; not done
-- Returns     as stage_counts
-- Raises      nothing
-- Locks       nothing. STABLE: mark and ledger are of one snapshot
-- Called by   job_progress
create or replace function pyjobs_internal.counts_so_far(job_id bigint, run int, stage smallint)
returns table (total bigint, pending bigint, leased bigint, succeeded bigint, failed bigint,
    counters jsonb)
language plpgsql stable
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
    set jit = off
as $$
declare
    m pyjobs_internal.claim_mark;
    since record;
begin
    select o.* into m from pyjobs_internal.claim_mark o
    where o.job_id = counts_so_far.job_id and o.run = counts_so_far.run
        and o.stage = counts_so_far.stage
    order by o.job_id desc, o.run desc, o.stage desc, o.pos desc, o.total_to desc
    limit 1;
    if m.summed_to is null then
        return query
        select c.* from pyjobs_internal.stage_counts(counts_so_far.job_id, counts_so_far.run,
            counts_so_far.stage) c;
        return;
    end if;

    select coalesce(sum(n.item_count - n.failed_count), 0) as succeeded,
        coalesce(sum(n.failed_count), 0) as failed,
        array_agg(n.counters) filter (where n.counters is not null) as counters
    into since
    from (
        select b.item_count, b.failed_count, b.counters
        from pyjobs_internal.batch b
        where b.job_id = counts_so_far.job_id and b.run = counts_so_far.run
            and b.stage = counts_so_far.stage and (b.closed_at is null) is false
            and b.pos >= m.summed_to
        union all
        select b.item_count, b.failed_count, b.counters
        from pyjobs_internal.batch b
        where b.id = any (m.still_open) and b.pos < m.summed_to and b.closed_at is not null) n;
    succeeded := m.succeeded + since.succeeded;
    failed := m.failed + since.failed;

    -- Not "b.job_id =": where most jobs are small that looks like few batches, and the planner
    -- would go through all of the stage; written so, only the index of what is leased is cheap.
    select coalesce(sum(b.item_count), 0) into leased
    from pyjobs_internal.batch b
    where (b.job_id, b.run) >= (counts_so_far.job_id, counts_so_far.run)
        and (b.job_id, b.run) <= (counts_so_far.job_id, counts_so_far.run)
        and b.stage = counts_so_far.stage and b.state = 'leased';

    -- Not "b.id >=": that would be looked for among the ids of all jobs.
    select m.total + coalesce(sum(b.item_count), 0) into total
    from pyjobs_internal.batch b
    where b.job_id = counts_so_far.job_id and b.run = counts_so_far.run
        and b.stage = counts_so_far.stage and (b.closed_at is null) = any ('{t,f}')
        and b.pos >= m.total_to and b.id - m.total_to >= 0;
    pending := total - leased - succeeded - failed;

    select coalesce(jsonb_object_agg(c.key, c.added), '{}') into counters
    from (
        select e.key, trim_scale(sum(e.value::numeric)) as added
        from unnest(since.counters || m.counters) g (given)
        cross join lateral jsonb_each_text(g.given) e
        group by e.key) c;
    return next;
end
$$;
