-- The examples' own table. Each worker writes its answers here in the transaction that records the
-- batch, so an answer is here exactly when its batch counts.
--
--     psql "$PYJOBS_DATABASE_URL" -v ON_ERROR_STOP=1 -f examples/schema.sql

create schema if not exists example;

create table if not exists example.answer (
    batch_id bigint not null,
    index    int not null,          -- of the item in its batch, from 0
    job_id   bigint not null,
    item     text not null,
    answer   text not null,
    primary key (batch_id, index)   -- a second answer to the same item would raise
);

grant usage on schema example to pyjobs_worker, pyjobs_reader;
grant insert on example.answer to pyjobs_worker;
grant select on example.answer to pyjobs_reader;
