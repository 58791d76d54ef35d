-- One index of the ledger in place of two: what a stage has, the open batches apart from the
-- closed ones. A batch that is enqueued, emitted or claimed writes one entry less, and new ones
-- come at the end of their part of the index; batch_open, from the highest id down, split every
-- page.
-- The look for an open batch (sql/internal/obstacle_quiet.sql) walks what it did before: the open
-- batches and those that died since the oldest snapshot, from the end. Were the closed not set
-- apart it would walk, at each record, over all that closed above a batch that was left behind:
-- those do not die.
-- Locks: writers of batch while the index is built; then batch, exclusively and briefly, in a
-- transaction of its own: who holds the one and waits for the other would be in a deadlock. Whoever
-- waits for such a lock makes all others wait, so it waits for a second at a time. Until the
-- functions are deployed, which comes next, the old ones look through the new index, which takes
-- them longer. Safe to run twice.
-- transactional: false
-- depends: 0007.one_check

-- Which batches has this stage, or this job, over all runs? Is anything of this stage open? From
-- the end: the first entries are those that have died.
do $$
begin
    for attempt in 1 .. 300 loop
        begin
            perform set_config('lock_timeout', '1s', true);
            create index if not exists batch_of_stage on pyjobs_internal.batch
                (job_id, run, stage, (closed_at is null), pos);
            exit;
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
        begin
            perform set_config('lock_timeout', '1s', true);
            drop index if exists pyjobs_internal.batch_open;
            drop index if exists pyjobs_internal.batch_of_job;
            exit;
        exception when lock_not_available then
            if attempt = 300 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end
$$;
