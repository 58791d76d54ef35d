-- One check for each of the tables that every claim and record writes. The server reads a check's
-- text anew for each statement that writes its table, so that what three of them said cost more
-- than the write itself. The same rules in fewer words: of both types the order of the values is
-- used, in which what is over comes last.
-- Not validated: each row that is there was checked by those that go, which go at the same moment,
-- and a scan of a large table would hold up everybody. What is written from now on is checked.
-- Locks: the two tables, exclusively and briefly, in a transaction each: producers lock them in one
-- order and recorders in the other, so that who held both would be in a deadlock. Whoever waits for
-- such a lock makes all others wait, so it waits for a second at a time. Safe to run twice.
-- transactional: false
-- depends: 0006.replica_identity

do $$
begin
    for attempt in 1 .. 300 loop
        exit when exists (
            select from pg_catalog.pg_constraint c
            where c.conrelid = 'pyjobs_internal.batch'::regclass and c.conname = 'batch_fits');
        begin
            perform set_config('lock_timeout', '1s', true);
            alter table pyjobs_internal.batch
                drop constraint if exists batch_lease_is_of_leased,
                drop constraint if exists batch_closed_is_final,
                drop constraint if exists batch_counts,
                add constraint batch_fits check (
                    (state = 'leased') = (lease_expires_at is not null)
                    and (state >= 'recorded') = (closed_at is not null)
                    and item_count > 0 and failed_count >= 0 and failed_count <= item_count)
                    not valid;
        exception when lock_not_available then
            if attempt = 300 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end
$$;

do $$
begin
    for attempt in 1 .. 300 loop
        exit when exists (
            select from pg_catalog.pg_constraint c
            where c.conrelid = 'pyjobs_internal.job'::regclass and c.conname = 'job_fits');
        begin
            perform set_config('lock_timeout', '1s', true);
            alter table pyjobs_internal.job
                drop constraint if exists job_started_is_derived,
                drop constraint if exists job_finish_time_is_of_final,
                drop constraint if exists job_deadline_is_of_canceling,
                add constraint job_fits check (
                    status <> 'STARTED'
                    and (status >= 'SUCCESS') = (finished_at is not null)
                    and (status = 'CANCELING') = (cancel_deadline is not null)) not valid;
        exception when lock_not_available then
            if attempt = 300 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end
$$;
