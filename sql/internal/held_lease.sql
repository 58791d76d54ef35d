-- pyjobs_internal.held_lease: the batch that a lease is held on, by a plain read.
--
--   batch_id, lease_epoch   the lease
-- Returns     job_id, worker
-- Raises      PJ001 stale lease, PJ002 already recorded, PJ004 no such batch
-- Locks       nothing
-- Called by   extend_lease, release_batch; again after an update that found nothing, to say why
create or replace function pyjobs_internal.held_lease(
    batch_id bigint, lease_epoch bigint, out job_id bigint, out worker text)
language plpgsql
as $$
declare
    b record;
begin
    select o.job_id, o.worker, o.state, o.lease_epoch into b
    from pyjobs_internal.batch o
    where o.id = held_lease.batch_id;
    if not found then
        perform pyjobs_internal.raise_no_batch(held_lease.batch_id);
    elsif b.lease_epoch = held_lease.lease_epoch and b.state = 'leased' then
        job_id := b.job_id;
        worker := b.worker;
    else
        perform pyjobs_internal.raise_refused(held_lease.batch_id, held_lease.lease_epoch,
            case when b.lease_epoch = held_lease.lease_epoch and b.state = 'recorded' then 'already'
                else 'stale' end);
    end if;
end
$$;
