-- What pyjobs is measured against: the least that does the same job, with no rule kept.
create schema bare;

-- The limit of one commit: one guarded update by primary key.
create table bare.batch (
    id        bigint primary key,
    epoch     bigint not null default 1,
    state     text not null default 'leased',
    closed_at timestamptz
);

-- The least that can end a job without counting: the same update, and a look in a statement of its
-- own whether another is open that nobody is changing.
create table bare.looked (like bare.batch including all);
create index on bare.looked (id) where state = 'leased';
create function bare.record_and_look(batch_id bigint) returns boolean
language plpgsql as $$
begin
    update bare.looked b set state = 'recorded', closed_at = clock_timestamp()
    where b.id = batch_id and b.epoch = 1 and b.state = 'leased';
    perform from bare.looked b
    where b.state = 'leased' and (b.xmax = '0'::xid or b.xmax = b.xmin)
    order by b.id desc
    limit 1;
    return found;
end
$$;

-- The usual way to count: a row in a ledger, and one counter of the job that all recorders update.
create table bare.ledger (batch_id bigint primary key, recorded_at timestamptz not null);
create table bare.counter (job_id int primary key, done bigint not null);
insert into bare.counter values (1, 0);

create function bare.record_hot(batch_id bigint) returns bigint
language plpgsql as $$
declare
    total bigint;
begin
    insert into bare.ledger values (batch_id, clock_timestamp());
    update bare.counter set done = done + 1 where job_id = 1 returning done into total;
    return total;
end
$$;

-- A queue in twenty lines: SKIP LOCKED and delete.
create table bare.queue (
    id           bigint generated always as identity primary key,
    leased_until timestamptz,
    payload      jsonb not null
);
create index on bare.queue (id) where leased_until is null;

create function bare.enqueue(payload jsonb) returns bigint
language sql as $$
    select pg_notify('bare_queue', '');
    insert into bare.queue (payload) values (enqueue.payload) returning id
$$;

create function bare.claim(n int) returns setof bare.queue
language plpgsql as $$
begin
    return query
    update bare.queue q set leased_until = clock_timestamp() + interval '60 seconds'
    where q.id = any (array(
        select w.id from bare.queue w where w.leased_until is null
        order by w.id limit n for update skip locked))
    returning q.*;
end
$$;

create function bare.done(ids bigint[]) returns void
language plpgsql as $$
begin
    delete from bare.queue q where q.id = any (ids);
end
$$;

-- For COPY and single inserts of the bytes that a job is made of.
create table bare.item (id bigint primary key, item jsonb not null);
create table bare.job (
    id      bigint generated always as identity primary key,
    queue   text not null,
    params  jsonb not null
);
