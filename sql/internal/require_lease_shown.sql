-- pyjobs_internal.require_lease_shown: check that a lease was shown at all.
--
--   batch_id, lease_epoch   as the claim returned them; neither may be null
-- Returns     nothing
-- Raises      PJ005
-- Locks       nothing
-- Called by   the public functions that take a lease
create or replace function pyjobs_internal.require_lease_shown(batch_id bigint, lease_epoch bigint)
returns void
language plpgsql
as $$
begin
    if require_lease_shown.batch_id is null then
        perform pyjobs_internal.raise_invalid('batch_id', 'the batch_id that the claim returned',
            null);
    end if;
    if require_lease_shown.lease_epoch is null then
        perform pyjobs_internal.raise_invalid('lease_epoch',
            'the lease_epoch that the claim returned', null);
    end if;
end
$$;
