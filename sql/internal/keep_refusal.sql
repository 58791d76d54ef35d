-- pyjobs_internal.keep_refusal: keep a refused result in view, and log it.
--   What a cancel or a retry leaves behind is normal; a result refused while its job runs on, or
--   completed without it, is suspicious: a lease was too short, a worker hung, or a result was sent
--   twice.
--
--   batch_id, lease_epoch   the lease that was shown
--   sqlstate                how it was refused
--   detail                  what the sender adds; may be null
-- Returns     nothing
-- Raises      PJ004
-- Locks       nothing that exists
-- Called by   report_refused, record_batches
create or replace function pyjobs_internal.keep_refusal(batch_id bigint, lease_epoch bigint,
    sqlstate text, detail text)
returns void
language plpgsql
as $$
declare
    kept pyjobs_internal.refusal;
begin
    insert into pyjobs_internal.refusal (at, job_id, batch_id, lease_epoch, run, job_status,
        suspicious, stage, sqlstate,
                                         detail, session_role)
    select pyjobs_internal.clock(), b.job_id, b.id, keep_refusal.lease_epoch, b.run,
           pyjobs_internal.effective_status(j.status, j.id, j.era),
           j.status not in ('CANCELING', 'REVOKED') and b.run = j.run,
           s.key, keep_refusal.sqlstate, keep_refusal.detail, session_user
    from pyjobs_internal.batch b
    join pyjobs_internal.job j on j.id = b.job_id
    join pyjobs_internal.stage s on s.job_id = b.job_id and s.run = b.run and s.no = b.stage
    where b.id = keep_refusal.batch_id
    returning * into kept;
    if kept.id is null then
        perform pyjobs_internal.raise_no_batch(keep_refusal.batch_id);
    end if;
    raise log 'pyjobs: % result refused (%): batch % of job %, stage %, run %, lease epoch %; the '
              'job is %',
        case when kept.suspicious then 'suspicious' else 'late' end, kept.sqlstate, kept.batch_id,
            kept.job_id, kept.stage,
        kept.run, kept.lease_epoch, kept.job_status;
end
$$;
