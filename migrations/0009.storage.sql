-- How the tables that grow are kept.
-- Locks: each table, against vacuum and other changes of it (SHARE UPDATE EXCLUSIVE), briefly;
-- neither readers nor writers wait. What an operator has set stays. Safe to run twice.
-- depends: 0008.batch_of_stage

-- Vacuum when a twentieth of a table is dead, not a fifth: of ten million batches kept, half a
-- million dead rows and their index entries, not two million. The server's time for a batch is the
-- same; there are more vacuums, each of less.
-- A stage's row is written twice, when it is made and when it is done, and what changes is in no
-- index. With half of each page left free the second stays on the page of the first, and no index
-- gets an entry: 6 % less log for a job of one batch, at the same size in the end. The other
-- tables' changes are of indexed columns, for which free room does nothing of the kind.
do $$
declare
    part text;
begin
    foreach part in array array['batch', 'job', 'offer', 'stage'] loop
        if not exists (
            select from pg_catalog.pg_class c
            where c.oid = ('pyjobs_internal.' || part)::regclass
                and c.reloptions::text like '%autovacuum_vacuum_scale_factor=%')
        then
            execute format(
                'alter table pyjobs_internal.%I set (autovacuum_vacuum_scale_factor = 0.05)', part);
        end if;
    end loop;
    if not exists (
        select from pg_catalog.pg_class c
        where c.oid = 'pyjobs_internal.stage'::regclass and c.reloptions::text like '%fillfactor=%')
    then
        alter table pyjobs_internal.stage set (fillfactor = 50);
    end if;
end
$$;
