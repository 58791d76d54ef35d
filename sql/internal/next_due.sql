-- pyjobs_internal.next_due: when can a batch of this job be claimed?
--
--   job_id   the job
-- Returns     a time, past or future; null where none can be, as things stand (not claimable,
--             paused, nothing pending in an open stage)
-- Raises      nothing
-- Locks       nothing
-- Called by   settle_offer, claim_from_offers
create or replace function pyjobs_internal.next_due(job_id bigint)
returns timestamptz
language plpgsql
as $$
declare
    j record;
    s record;
    due timestamptz;
    earliest timestamptz;
begin
    select job.run, job.run_at into j
    from pyjobs_internal.job job
    join pyjobs_internal.job_state state on state.status = job.status
    where job.id = next_due.job_id and state.claimable and not job.paused;
    if not found then
        return null;
    end if;
    for s in
        select stage.no from pyjobs_internal.stage stage
        where stage.job_id = next_due.job_id and stage.run = j.run and stage.open and not stage.done
    loop
        select b.due_at into due
        from pyjobs_internal.batch b
        where b.job_id = next_due.job_id and b.run = j.run and b.stage = s.no
            and b.state = 'pending' and b.due_at = '-infinity'
            and b.pos >= pyjobs_internal.low_water(next_due.job_id, j.run, s.no)
        order by b.job_id, b.run, b.stage, b.due_at, b.pos
        limit 1;
        if not found then
            select b.due_at into due
            from pyjobs_internal.batch b
            where b.job_id = next_due.job_id and b.run = j.run and b.stage = s.no
                and b.state = 'pending' and b.due_at > '-infinity'
            order by b.job_id, b.run, b.stage, b.due_at, b.pos
            limit 1;
        end if;
        earliest := least(earliest, due);
    end loop;
    return greatest(earliest, case when earliest is not null then j.run_at end);
end
$$;
