-- The four roles: NOLOGIN, siblings, shared by all databases of the server. Making them needs
-- CREATEROLE; where the
-- one who migrates has it not, an administrator runs this file once: `pyjobs sql --roles | psql`.
-- Locks: the shared catalogue's rows of roles that it makes. Safe to run twice.
-- depends: 0001.types

do $$
declare
    wanted text;
begin
    foreach wanted in array array['pyjobs_producer', 'pyjobs_worker', 'pyjobs_operator',
        'pyjobs_reader'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception
                when duplicate_object or unique_violation then
                    null;  -- another database of this server is migrated at this moment
                when insufficient_privilege then
                    raise exception 'role % is missing and % may not make it', wanted, current_user
                        using errcode = 'insufficient_privilege',
                              hint = 'Let an administrator run once: '
                                     'pyjobs sql --roles | psql. Then migrate again.';
            end;
        end if;
    end loop;
end
$$;
