-- Not validated, as each row that is there was checked by the one that goes.
-- Locks: the two tables, exclusively and briefly.
do $$
begin
    if exists (
        select from pg_catalog.pg_constraint c
        where c.conrelid = to_regclass('pyjobs_internal.batch') and c.conname = 'batch_fits')
    then
        alter table pyjobs_internal.batch
            drop constraint batch_fits,
            add constraint batch_lease_is_of_leased check (
                (state = 'leased') = (lease_expires_at is not null)) not valid,
            add constraint batch_closed_is_final check (
                (state in ('recorded', 'failed')) = (closed_at is not null)) not valid,
            add constraint batch_counts check (
                item_count > 0 and failed_count between 0 and item_count) not valid;
    end if;
    if exists (
        select from pg_catalog.pg_constraint c
        where c.conrelid = to_regclass('pyjobs_internal.job') and c.conname = 'job_fits')
    then
        alter table pyjobs_internal.job
            drop constraint job_fits,
            add constraint job_started_is_derived check (status <> 'STARTED') not valid,
            add constraint job_finish_time_is_of_final check (
                (status in ('SUCCESS', 'FAILURE', 'REVOKED')) = (finished_at is not null))
                not valid,
            add constraint job_deadline_is_of_canceling check (
                (status = 'CANCELING') = (cancel_deadline is not null)) not valid;
    end if;
end
$$;
