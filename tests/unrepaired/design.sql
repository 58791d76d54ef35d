-- The unrepaired design: a job's status is a column that every writer saves together with the
-- progress, out of the copy that it read at some earlier time. This is what an object-relational
-- mapper does by default, written out. The tests that pyjobs passes must fail on it.
create schema unrepaired;

create table unrepaired.job (
    id          bigint generated always as identity primary key,
    status      text not null,
    finished_at timestamptz,
    progress    jsonb not null
);

create function unrepaired.load(id bigint)
returns unrepaired.job
language sql
as $$ select j from unrepaired.job j where j.id = load.id $$;

-- Every column, whatever has happened to the row since it was loaded.
create function unrepaired.save(id bigint, status text, finished_at timestamptz, progress jsonb)
returns void
language sql
as $$
    update unrepaired.job j
    set status = save.status, finished_at = save.finished_at, progress = save.progress
    where j.id = save.id
$$;
