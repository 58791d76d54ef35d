-- pyjobs_internal.insert_batches: cut items into batches of a stage.
--   By their places in the array, each batch in one step: to take all items apart and put them
--   together again costs three times as much.
--
--   job_id, run, stage   where they go
--   items       a JSON array; null: one batch of one item, the job's params
--   batch_size  items a batch; the last one may have fewer
--   emitted     by a batch of the stage before, and not given by a producer
-- Returns     how many batches
-- Raises      nothing
-- Locks       only what it adds
-- Called by   enqueue_job, add_items, record_batch (items for the next stage)
create or replace function pyjobs_internal.insert_batches(
    job_id bigint, run int, stage smallint, items jsonb, batch_size int,
        emitted boolean default false)
returns bigint
language plpgsql
as $$
declare
    -- A copy in memory: what lies in a table, compressed, is unpacked at each mention.
    given constant jsonb := insert_batches.items || '[]';
    many constant int := coalesce(jsonb_array_length(given), 1);
begin
    if many = 0 then
        return 0;
    elsif many <= insert_batches.batch_size or insert_batches.items is null then
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted, items)
        select n.id, n.id, insert_batches.job_id, insert_batches.run, insert_batches.stage, many,
            insert_batches.emitted, insert_batches.items
        from (select nextval('pyjobs_internal.batch_id') as id) n;
        return 1;
    elsif insert_batches.batch_size = 1 then
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted, items)
        select n.id, n.id, insert_batches.job_id, insert_batches.run, insert_batches.stage, 1,
            insert_batches.emitted, jsonb_build_array(given -> n.first)
        from (select nextval('pyjobs_internal.batch_id') as id, c.first
              from (select generate_series(0, many - 1) as first) c) n;
        return many;
    end if;
    insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted, items)
    select n.id, n.id, insert_batches.job_id, insert_batches.run, insert_batches.stage,
        least(insert_batches.batch_size, many - n.first), insert_batches.emitted,
        jsonb_path_query_array(given, '$[$first to $last]',
            jsonb_build_object('first', n.first, 'last', n.first + insert_batches.batch_size - 1))
    from (select nextval('pyjobs_internal.batch_id') as id, c.first
          from (select generate_series(0, many - 1, insert_batches.batch_size) as first) c) n;
    return ceil(many::numeric / insert_batches.batch_size);
end
$$;
