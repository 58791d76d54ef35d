-- pyjobs_internal.insert_batches: cut items into batches of a stage.
--
--   job_id, run, stage   where they go
--   items       a JSON array; null: one batch of one item, the job's params
--   batch_size  items a batch; the last one may have fewer
--   emitted     by a batch of the stage before, and not given by a producer
-- Returns     how many batches
-- Raises      nothing
-- Locks       only what it adds
-- Called by   enqueue_job, add_items, record_batch (items for the next stage), retry_job
create or replace function pyjobs_internal.insert_batches(
    job_id bigint, run int, stage smallint, items jsonb, batch_size int,
        emitted boolean default false)
returns bigint
language plpgsql
as $$
declare
    made bigint;
begin
    if insert_batches.items is null then
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted)
        select n.id, n.id, insert_batches.job_id, insert_batches.run, insert_batches.stage, 1,
            insert_batches.emitted
        from (select nextval('pyjobs_internal.batch_id') as id) n;
    elsif insert_batches.batch_size = 1 then
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted, items)
        select n.id, n.id, insert_batches.job_id, insert_batches.run, insert_batches.stage, 1,
            insert_batches.emitted, jsonb_build_array(n.item)
        from (select nextval('pyjobs_internal.batch_id') as id, i.item
              from jsonb_array_elements(insert_batches.items) i (item)) n;
    else
        insert into pyjobs_internal.batch (id, pos, job_id, run, stage, item_count, emitted, items)
        select n.id, n.id, insert_batches.job_id, insert_batches.run, insert_batches.stage,
            n.item_count, insert_batches.emitted,
               n.items
        from (select nextval('pyjobs_internal.batch_id') as id, g.item_count, g.items
              from (select count(*)::int as item_count, jsonb_agg(i.item order by i.no) as items
                    from jsonb_array_elements(insert_batches.items) with ordinality i (item, no)
                    group by (i.no - 1) / insert_batches.batch_size
                    order by (i.no - 1) / insert_batches.batch_size) g) n;
    end if;
    get diagnostics made = row_count;
    return made;
end
$$;
