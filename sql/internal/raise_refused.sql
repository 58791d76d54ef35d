-- pyjobs_internal.raise_refused: refuse a call with a lease that does not hold.
--   The caller's transaction, its own rows included, goes with it.
--
--   batch_id, lease_epoch   the lease that was shown
--   outcome                 already, stale or unknown
-- Returns     nothing
-- Raises      PJ001 (stale), PJ002 (already), PJ004 (unknown), always
-- Locks       nothing
-- Called by   close_batch, extend_lease, release_batch
create or replace function pyjobs_internal.raise_refused(batch_id bigint, lease_epoch bigint,
    outcome text)
returns void
language plpgsql
as $$
declare
    b record;
begin
    select o.job_id, o.run, o.lease_epoch, o.state, o.worker, o.closed_at, s.key as stage,
        j.run as job_run,
           pyjobs_internal.effective_status(j.status, j.id, j.era) as status
    into b
    from pyjobs_internal.batch o
    join pyjobs_internal.job j on j.id = o.job_id
    join pyjobs_internal.stage s on s.job_id = o.job_id and s.run = o.run and s.no = o.stage
    where o.id = raise_refused.batch_id;
    if not found then
        perform pyjobs_internal.raise_no_batch(raise_refused.batch_id);
    end if;

    if raise_refused.outcome = 'already' then
        raise exception 'batch % was already recorded under lease epoch %', raise_refused.batch_id,
            raise_refused.lease_epoch
            using errcode = 'PJ002',
                  detail = format('Job %s (%s), stage %s; recorded at %s.', b.job_id, b.status,
                      b.stage, b.closed_at),
                  hint = 'After a lost commit acknowledgement this means success. Nothing was '
                         'counted twice.';
    end if;
    raise exception 'the lease on batch % with epoch % is stale', raise_refused.batch_id,
        raise_refused.lease_epoch
        using errcode = 'PJ001',
              detail = format('Job %s is %s, run %s; the batch is of run %s, stage %s, %s, its '
                              'epoch is %s%s.',
                  b.job_id, b.status, b.job_run, b.run, b.stage, b.state, b.lease_epoch,
                  case when b.state = 'leased' then format(', leased by %s', b.worker) else '' end),
              hint = format('Roll back and drop the result. Then report it: select '
                            'pyjobs.report_refused(%s, %s, ''PJ001'')',
                  raise_refused.batch_id, raise_refused.lease_epoch);
end
$$;
