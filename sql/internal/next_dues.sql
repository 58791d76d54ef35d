-- pyjobs_internal.next_dues: when can a batch of each of these jobs be claimed?
--
--   job_ids   the jobs, each once
-- Returns     one row a job: a time, past or future; null where none can be, as things stand (not
--             claimable, paused, nothing pending in an open stage)
-- Raises      nothing
-- Locks       nothing
-- Called by   settle_offers, claim_from_offers
create or replace function pyjobs_internal.next_dues(job_ids bigint[])
returns table (job_id bigint, due timestamptz)
language plpgsql
as $$
begin
    return query
    select w.id, (
        select greatest(min(first.due_at), j.run_at)
        from pyjobs_internal.job j
        join pyjobs_internal.job_state state on state.status = j.status
        join pyjobs_internal.stage s
            on s.job_id = j.id and s.run = j.run and s.open and not s.done
        cross join lateral (
            -- What waits for nothing but its turn, from the mark on, and what waits for a time.
            (select b.due_at from pyjobs_internal.batch b
             where b.job_id = j.id and b.run = j.run and b.stage = s.no
                and b.state = 'pending' and b.due_at = '-infinity'
                and b.pos >= pyjobs_internal.low_water(j.id, j.run, s.no)
             order by b.job_id, b.run, b.stage, b.due_at, b.pos
             limit 1)
            union all
            (select b.due_at from pyjobs_internal.batch b
             where b.job_id = j.id and b.run = j.run and b.stage = s.no
                and b.state = 'pending' and b.due_at > '-infinity'
             order by b.job_id, b.run, b.stage, b.due_at, b.pos
             limit 1)) first
        where j.id = w.id and state.claimable and not j.paused
        group by j.run_at)
    from unnest(next_dues.job_ids) w (id);
end
$$;
