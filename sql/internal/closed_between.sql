-- pyjobs_internal.closed_between: what was closed of a stage between two positions, to be added to
-- the sums of a mark.
--   A batch that is closed keeps its position, its items and its counts. One that is open keeps its
--   position until it is returned, and then has one above all marks. So what is open below a mark
--   can be listed by its id, and is looked up once more when the next sums are made: closed there,
--   still open there, or gone to where it will be come upon.
--
--   job_id, run, stage   the stage
--   since        from this position on; what is below it has been added up, but for open_before
--   below        up to this position; all that will ever be below it is there
--   open_before  ids of the batches that were open below since
-- Returns     one row: up_to, the position below which it is added up now (of more than 20,000
--             batches, the others another time); still_open, ids of what is open below up_to;
--             succeeded, failed, counters, in items: what was closed since
-- Raises      nothing
-- Locks       nothing. STABLE: it counts what the calling statement sees
-- Called by   move_mark
create or replace function pyjobs_internal.closed_between(job_id bigint, run int, stage smallint,
    since bigint, below bigint, open_before bigint[])
returns table (up_to bigint, still_open bigint[], succeeded bigint, failed bigint, counters jsonb)
language sql stable
as $$
    -- The closed and the open lie apart in the index. Among the open are the entries of all that
    -- have been closed since the oldest snapshot: only those of this part are walked over.
    with closed as materialized (
        select b.pos, b.item_count, b.failed_count, b.counters
        from pyjobs_internal.batch b
        where b.job_id = closed_between.job_id and b.run = closed_between.run
            and b.stage = closed_between.stage and (b.closed_at is null) is false
            and b.pos >= closed_between.since and b.pos < closed_between.below
        order by b.pos
        limit 20000
    ),
    open as materialized (
        select b.id, b.pos
        from pyjobs_internal.batch b
        where b.job_id = closed_between.job_id and b.run = closed_between.run
            and b.stage = closed_between.stage and b.closed_at is null
            and b.pos >= closed_between.since and b.pos < closed_between.below
        order by b.pos
        limit 20000
    ),
    bound as (
        select least(closed_between.below,
            (select max(c.pos) from closed c having count(*) = 20000),
            (select max(o.pos) from open o having count(*) = 20000)) as pos
    ),
    before as materialized (
        select b.id, b.closed_at, b.item_count, b.failed_count, b.counters
        from pyjobs_internal.batch b
        where b.id = any (closed_between.open_before) and b.pos < closed_between.since
    ),
    newly_closed as (
        select c.item_count, c.failed_count, c.counters
        from closed c
        where c.pos < (select pos from bound)
        union all
        select b.item_count, b.failed_count, b.counters
        from before b
        where b.closed_at is not null
    )
    select
        (select pos from bound),
        array(
            select o.id from open o where o.pos < (select pos from bound)
            union all
            select b.id from before b where b.closed_at is null),
        coalesce(sum(n.item_count - n.failed_count), 0)::bigint,
        coalesce(sum(n.failed_count), 0)::bigint,
        coalesce(
            (select jsonb_object_agg(per_counter.key, per_counter.added)
             from (
                 select c.key, trim_scale(sum(c.value::numeric)) as added
                 from newly_closed r
                 cross join lateral jsonb_each_text(r.counters) c
                 where r.counters is not null
                 group by c.key
             ) per_counter),
            '{}'::jsonb)
    from newly_closed n
$$;
