-- What a record and an enqueue are made of, step by step, each in tables made like pyjobs' own.
create schema anatomy;

-- The ledger's columns with a key and nothing else; its checks with them; its indexes too.
create table anatomy.columns (like pyjobs_internal.batch including defaults, primary key (id));
create table anatomy.checks
    (like pyjobs_internal.batch including defaults including constraints, primary key (id));
create table anatomy.indexes
    (like pyjobs_internal.batch including defaults including constraints including indexes);

create function anatomy.nothing(batch_id bigint) returns boolean
language plpgsql as $$
begin
    return batch_id is null;
end
$$;

create function anatomy.bare_update(batch_id bigint) returns boolean
language plpgsql as $$
begin
    update bare.batch b set state = 'recorded', closed_at = clock_timestamp()
    where b.id = batch_id and b.epoch = 1 and b.state = 'leased';
    return found;
end
$$;

create function anatomy.columns(batch_id bigint) returns boolean
language plpgsql as $$
begin
    update anatomy.columns b
    set state = 'recorded', closed_at = clock_timestamp(), lease_expires_at = null
    where b.id = batch_id and b.lease_epoch = 1 and b.lease_expires_at is not null;
    return found;
end
$$;

create function anatomy.checks(batch_id bigint) returns boolean
language plpgsql as $$
begin
    update anatomy.checks b
    set state = 'recorded', closed_at = clock_timestamp(), lease_expires_at = null
    where b.id = batch_id and b.lease_epoch = 1 and b.lease_expires_at is not null;
    return found;
end
$$;

create function anatomy.indexes(batch_id bigint) returns boolean
language plpgsql as $$
begin
    update anatomy.indexes b
    set state = 'recorded', closed_at = clock_timestamp(), lease_expires_at = null
    where b.id = batch_id and b.lease_epoch = 1 and b.lease_expires_at is not null;
    return found;
end
$$;
