-- pyjobs_internal.low_water: the position from which a stage is to be looked at for batches that
--   wait for nothing but their turn.
--
--   job_id, run, stage   the stage
-- Returns     its mark; 0 where it has none
-- Raises      nothing
-- Locks       nothing
-- Called by   next_dues, explain_job
create or replace function pyjobs_internal.low_water(job_id bigint, run int, stage smallint)
returns bigint
language plpgsql stable
as $$
declare
    mark bigint;
begin
    select m.pos into mark
    from pyjobs_internal.claim_mark m
    where m.job_id = low_water.job_id and m.run = low_water.run and m.stage = low_water.stage
    order by m.job_id desc, m.run desc, m.stage desc, m.pos desc
    limit 1;
    return coalesce(mark, 0);
end
$$;
