-- What a stage had come to at each of its marks, so that who asks how far it is adds up what was
-- closed and what came since, and not the whole ledger.
-- The newest mark is found by its totals as well: two may stand at one position.
-- Locks: claim_mark, exclusively and briefly, while its index is built too: the marks are few. Who
-- waits for such a lock makes all others wait, so it waits for a second at a time. Safe to run
-- twice.
-- transactional: false
-- depends: 0013.room_in_batch

-- summed_to: succeeded, failed and counters, in items, are of the closed batches with a lower
-- position, but for those in still_open, which were open then. What is closed stays as it is and
-- where it is, so that these are true for ever. total is of the batches with ids below total_to:
-- all that ever have such an id were there. summed_to null: none of it is (a stage that was begun
-- before there were sums, or has too many counters). See sql/internal/move_mark.sql and
-- counts_so_far.sql.
do $$
begin
    for attempt in 1 .. 300 loop
        begin
            perform set_config('lock_timeout', '1s', true);
            alter table pyjobs_internal.claim_mark
                add column if not exists summed_to bigint,
                add column if not exists still_open bigint[],
                add column if not exists succeeded bigint,
                add column if not exists failed bigint,
                add column if not exists counters jsonb,
                add column if not exists total_to bigint,
                add column if not exists total bigint;
            -- Which mark is the newest?
            create index if not exists claim_mark_newest on pyjobs_internal.claim_mark
                (job_id, run, stage, pos, total_to);
            drop index if exists pyjobs_internal.claim_mark_of_stage;
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
