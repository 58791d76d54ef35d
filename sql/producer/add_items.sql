-- pyjobs.add_items: give an unsealed job more items. Not safe to repeat: they would come twice.
--
--   job_id  the job; unsealed, and neither final nor being cancelled
--   items   a JSON array; cut into batches of the job's batch_size
--   stage   which stage; null: the first
-- Returns     the job's status
-- Raises      PJ004 no such job, PJ005 bad argument, PJ006 sealed, cancelling or final, PJ007
--             isolation level
-- Locks       the job's intake lock, shared, to the end of the transaction: seal_job waits for it;
--             the stage's arrival lock, shared; now and then as move_mark
-- Called by   producers
create or replace function pyjobs.add_items(job_id bigint, items jsonb, stage text default null)
returns pyjobs.job_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    j record;
    s record;
    made bigint;
begin
    perform pyjobs_internal.require_read_committed();
    if add_items.job_id is null then
        perform pyjobs_internal.raise_no_job(null);
    end if;
    perform pyjobs_internal.require_items('items', add_items.items);

    perform pg_advisory_xact_lock_shared(pyjobs_internal.intake_key(add_items.job_id));
    select job.id, job.run, job.status, job.sealed, job.batch_size, state.final into j
    from pyjobs_internal.job job
    join pyjobs_internal.job_state state on state.status = job.status
    where job.id = add_items.job_id;
    if not found then
        perform pyjobs_internal.raise_no_job(add_items.job_id);
    end if;
    if j.final or j.sealed or j.status = 'CANCELING' then
        raise exception 'job % takes no more items', j.id
            using errcode = 'PJ006',
                  detail = case when j.final or j.status = 'CANCELING' then format('It is %s.',
                      j.status) else 'It is sealed.' end,
                  hint = 'Make a new job of them. Nothing was changed.';
    end if;
    select t.no, t.open into s
    from pyjobs_internal.stage t
    where t.job_id = j.id and t.run = j.run
        and case when add_items.stage is null then t.no = 1 else t.key = add_items.stage end;
    if not found then
        perform pyjobs_internal.raise_invalid('stage',
            (select format('null or one of %s', string_agg(t.key, ', ' order by t.no))
             from pyjobs_internal.stage t where t.job_id = j.id and t.run = j.run),
            add_items.stage);
    end if;

    perform pg_advisory_xact_lock_shared(pyjobs_internal.arrival_key(j.id, s.no));
    made := pyjobs_internal.insert_batches(j.id, j.run, s.no, add_items.items, j.batch_size);
    -- Also while it is held: it may be released, and that offer withdrawn, before we commit.
    if made > 0 and s.open then
        perform pyjobs_internal.offer_job(j.id);
    end if;
    if made > 0 and pyjobs_internal.mark_due(currval('pyjobs_internal.batch_id'), made::int) then
        perform pyjobs_internal.move_mark(j.id, j.run, s.no, false);
    end if;
    return pyjobs_internal.status_of(j.id);
end
$$;
