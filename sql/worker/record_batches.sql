-- pyjobs.record_batches: record many batches at once, of one job or of several; a stale one is
-- told, not raised.
--   For callers with no rows of their own in the transaction: those of a stale batch would commit.
--   Where one of the jobs makes it wait (for who changes its row, say), all that it has recorded
--   before waits with it, to the one commit.
--   The batches are recorded job by job in ascending order, so that two such calls cannot wait for
--   each other.
--
--   batch_ids     at most 100,000, each once
--   lease_epochs  the nth is the nth batch's
--   failed        null, or a JSON array whose nth element is the nth batch's array of failed items
--   counters      null, or a JSON array whose nth element is the nth batch's counters
-- Returns     batch_id, outcome (recorded, already, stale), in the order of batch_ids
-- Raises      PJ004 no such batch, PJ005 bad argument, PJ007 isolation level
-- Locks       as record_batch, for each, ordered by job and batch; as record_plain
-- Called by   workers
create or replace function pyjobs.record_batches(
    batch_ids bigint[], lease_epochs bigint[], failed jsonb default null,
        counters jsonb default null)
returns setof pyjobs.batch_outcome
language plpgsql security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    wanted constant int := cardinality(record_batches.batch_ids);
    outcomes text[];
    part record;
    recorded bigint[];
    b record;
    closed record;
begin
    perform pyjobs_internal.require_read_committed();
    if wanted is null or wanted not between 1 and 100000
        or array_ndims(record_batches.batch_ids) <> 1
        or array_position(record_batches.batch_ids, null) is not null
        or (select count(distinct i.id) from unnest(record_batches.batch_ids) i (id)) < wanted
    then
        perform pyjobs_internal.raise_invalid('batch_ids',
            'an array of 1 to 100000 different ids of batches',
            case when wanted > 100000 then format('%s elements long', wanted)
                else left(record_batches.batch_ids::text, 200) end);
    end if;
    if cardinality(record_batches.lease_epochs) is distinct from wanted
        or array_ndims(record_batches.lease_epochs) <> 1
        or array_position(record_batches.lease_epochs, null) is not null
    then
        perform pyjobs_internal.raise_invalid('lease_epochs',
            format('an array of %s epochs, one for each batch', wanted),
            case when cardinality(record_batches.lease_epochs) > 100000
                then format('%s elements long', cardinality(record_batches.lease_epochs))
                else left(record_batches.lease_epochs::text, 200) end);
    end if;
    if record_batches.failed is not null and (jsonb_typeof(record_batches.failed) <> 'array'
        or jsonb_array_length(record_batches.failed) <> wanted)
    then
        perform pyjobs_internal.raise_invalid('failed',
            format('null or a JSON array of %s arrays, one for each batch', wanted),
            pyjobs_internal.say_json(record_batches.failed));
    end if;
    if record_batches.counters is not null and (jsonb_typeof(record_batches.counters) <> 'array'
        or jsonb_array_length(record_batches.counters) <> wanted)
    then
        perform pyjobs_internal.raise_invalid('counters',
            format('null or a JSON array of %s objects, one for each batch', wanted),
            pyjobs_internal.say_json(record_batches.counters));
    end if;
    if record_batches.failed is not null or record_batches.counters is not null then
        for n in 0 .. wanted - 1 loop
            perform pyjobs_internal.require_result(
                case when record_batches.failed is null then '[]'
                    else record_batches.failed -> n end,
                case when record_batches.counters is null then '{}'
                    else record_batches.counters -> n end);
        end loop;
    end if;

    outcomes := array_fill('recorded'::text, array[wanted]);
    -- In the one order; neighbours of which each is all that its job has are recorded together, a
    -- thousand at most: looking results up in an array costs the square of its length.
    for part in
        select n.plain, array_agg(n.id order by n.place) as ids,
            array_agg(n.epoch order by n.place) as epochs, array_agg(n.no order by n.place) as nos
        from (
            select w.*, w.place - row_number() over (partition by w.plain order by w.place) as run
            from (
                select i.id, i.epoch, i.no::int as no, coalesce(o.plain, false) as plain,
                    row_number() over (order by o.job, i.id) as place
                from unnest(record_batches.batch_ids, record_batches.lease_epochs)
                    with ordinality i (id, epoch, no)
                left join lateral pyjobs_internal.is_plain(i.id, i.epoch,
                    coalesce(record_batches.failed -> (i.no::int - 1), '[]') = '[]') o on true) w) n
        group by n.plain, n.run, n.place / 1000
        order by min(n.place)
    loop
        recorded := '{}';
        if part.plain then
            recorded := pyjobs_internal.record_plain(part.ids, part.epochs,
                case when record_batches.counters is not null then (
                    select array_agg(record_batches.counters -> (p.no - 1) order by p.place)
                    from unnest(part.nos) with ordinality p (no, place)) end);
        end if;
        continue when cardinality(recorded) = cardinality(part.ids);
        for b in
            select p.id, p.epoch, p.no
            from unnest(part.ids, part.epochs, part.nos) with ordinality p (id, epoch, no, place)
            where p.id <> all (recorded)
            order by p.place
        loop
            select * into closed from pyjobs_internal.close_batch(b.id, b.epoch,
                coalesce(record_batches.failed -> (b.no - 1), '[]'),
                coalesce(record_batches.counters -> (b.no - 1), '{}'),
                null, true);
            if closed.outcome = 'unknown' then
                perform pyjobs_internal.raise_no_batch(b.id);
            end if;
            if closed.outcome = 'stale' then
                perform pyjobs_internal.keep_refusal(b.id, b.epoch, 'PJ001',
                    'refused by record_batches');
            end if;
            outcomes[b.no] := coalesce(closed.outcome, 'recorded');
        end loop;
    end loop;

    return query
    select i.id, outcomes[i.no::int] from unnest(record_batches.batch_ids) with ordinality i (id,
        no) order by i.no;
end
$$;
