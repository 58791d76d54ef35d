-- pyjobs.report_refused: say afterwards that a result was refused.
--   The refusal itself rolled back with the caller's transaction; this keeps it in view
--   (pyjobs.refused, explain_job).
--
--   batch_id, lease_epoch  the lease that was shown
--   sqlstate               how it was refused, as PJ001; five capital letters or digits
--   detail                 anything to add, at most 10,000 characters; may be null
-- Returns     nothing
-- Raises      PJ004 no such batch, PJ005 bad argument
-- Locks       nothing that exists
-- Called by   workers, in a transaction of its own after the roll back
create or replace function pyjobs.report_refused(batch_id bigint, lease_epoch bigint, sqlstate text,
    detail text default null)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform pyjobs_internal.require_lease_shown(report_refused.batch_id,
        report_refused.lease_epoch);
    if report_refused.sqlstate is null or report_refused.sqlstate !~ '^[0-9A-Z]{5}$' then
        perform pyjobs_internal.raise_invalid('sqlstate',
            'five capital letters or digits, as PJ001', report_refused.sqlstate);
    end if;
    perform pyjobs_internal.require_reason('detail', report_refused.detail);
    perform pyjobs_internal.keep_refusal(
        report_refused.batch_id, report_refused.lease_epoch, report_refused.sqlstate,
            report_refused.detail);
end
$$;
