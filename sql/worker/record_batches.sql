-- pyjobs.record_batches: record many batches at once, of one job or of several; a stale one is
-- told, not raised.
--   For callers with no rows of their own in the transaction: those of a stale batch would commit.
--   The batches are recorded job by job in ascending order, so that two such calls cannot wait for
--   each other.
--
--   batch_ids     at most 100,000, each once
--   lease_epochs  the nth is the nth batch's
--   failed        null, or a JSON array whose nth element is the nth batch's array of failed items
--   counters      null, or a JSON array whose nth element is the nth batch's counters
-- Returns     batch_id, outcome (recorded, already, stale), in the order of batch_ids
-- Raises      PJ004 no such batch, PJ005 bad argument, PJ007 isolation level
-- Locks       as record_batch, for each, ordered by job and batch
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
    for n in 0 .. wanted - 1 loop
        perform pyjobs_internal.require_result(
            case when record_batches.failed is null then '[]' else record_batches.failed -> n end,
            case when record_batches.counters is null then '{}'
                else record_batches.counters -> n end);
    end loop;

    outcomes := array_fill(null::text, array[wanted]);
    for b in
        -- Each batch is looked up on its own: a join's plan, made without knowing how many are
        -- given, read the whole table.
        select i.id, i.epoch, i.no::int as no
        from unnest(record_batches.batch_ids, record_batches.lease_epochs) with ordinality i (id,
            epoch, no)
        order by (select o.job_id from pyjobs_internal.batch o where o.id = i.id), i.id
    loop
        select * into closed from pyjobs_internal.close_batch(b.id, b.epoch,
            case when record_batches.failed is null then '[]'
                else record_batches.failed -> (b.no - 1) end,
            case when record_batches.counters is null then '{}'
                else record_batches.counters -> (b.no - 1) end,
            null);
        if closed.outcome = 'unknown' then
            perform pyjobs_internal.raise_no_batch(b.id);
        end if;
        if closed.outcome = 'stale' then
            perform pyjobs_internal.keep_refusal(b.id, b.epoch, 'PJ001',
                'refused by record_batches');
        end if;
        outcomes[b.no] := closed.outcome;
    end loop;

    return query
    select i.id, outcomes[i.no::int] from unnest(record_batches.batch_ids) with ordinality i (id,
        no) order by i.no;
end
$$;
