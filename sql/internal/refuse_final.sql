-- pyjobs_internal.refuse_final: refuse a change that a final job does not take.
--
--   j   the job's row, locked
-- Returns     nothing
-- Raises      PJ006 where it is final
-- Locks       nothing
-- Called by   set_paused, set_priority
create or replace function pyjobs_internal.refuse_final(j pyjobs_internal.job)
returns void
language plpgsql
as $$
begin
    if (refuse_final.j).finished_at is not null then
        raise exception 'job % is %, which is final', (refuse_final.j).id, (refuse_final.j).status
            using errcode = 'PJ006',
                  detail = format('It ended at %s.', (refuse_final.j).finished_at),
                  hint = format('Start its next run: select pyjobs.retry_job(%s). Nothing was '
                                'changed.', (refuse_final.j).id);
    end if;
end
$$;
