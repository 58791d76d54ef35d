-- What docker-compose.yml runs once after `pyjobs migrate`: the examples' table, and a login of the
-- workers' own that may do what a worker does and nothing else. Safe to run again.

\ir schema.sql
\set password `printf %s "$PYJOBS_WORKER_PASSWORD"`

select 'create role example_worker login'
where not exists (select from pg_roles where rolname = 'example_worker')
\gexec
alter role example_worker password :'password';
grant pyjobs_worker to example_worker;
