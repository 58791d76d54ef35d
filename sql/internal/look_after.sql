-- pyjobs_internal.look_after: look whether what we closed was the last obstacle.
--
--   job_id   the job
--   kept     we had handed over to one of the batches that we closed (kept_here): another is kept
--   by       who does it, for the history
-- Returns     nothing
-- Raises      as advance_job
-- Locks       as advance_job
-- Called by   close_batch, record_plain, release_batch, expire_leases
create or replace function pyjobs_internal.look_after(job_id bigint, kept boolean, by text)
returns void
language plpgsql
as $$
begin
    if look_after.kept then
        perform pyjobs_internal.advance_job(look_after.job_id, true, look_after.by);
        -- A cancel has a rule of its own.
        perform from pyjobs_internal.job j
        where j.id = look_after.job_id and j.status = 'CANCELING';
        if not found then
            return;
        end if;
    end if;
    perform pyjobs_internal.advance_job(look_after.job_id, false, look_after.by);
end
$$;
