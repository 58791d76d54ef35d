-- The tables. There are no foreign keys between them: a key check would lock the parent row for
-- every recorder.
-- Locks: nothing that exists; it only adds. Safe to run twice.
-- depends: 0001.types

-- Ids are opaque: never dense, never ordered in meaning. Another increment gives a server ids of
-- its own residue.
create sequence if not exists pyjobs_internal.job_id;
create sequence if not exists pyjobs_internal.batch_id;

-- Counts how often a claim passed over an offer that another holds; see
-- sql/internal/claim_from_offers.sql.
create sequence if not exists pyjobs_internal.offer_pass;

-- The state machine as data (filled by sql/data): which set a status belongs to, and what may
-- follow it.
create table if not exists pyjobs_internal.job_state (
    status      pyjobs.job_status primary key,
    claimable   boolean not null,   -- workers are given its batches
    finalizable boolean not null,   -- completion may end it
    running     boolean not null,   -- released, and not final
    final       boolean not null,   -- nothing changes it within its run
    meaning     text not null
);

create table if not exists pyjobs_internal.job_transition (
    from_status pyjobs.job_status,
    to_status   pyjobs.job_status,
    by          text not null,
    primary key (from_status, to_status)
);

-- A lane that workers subscribe to. A row exists only for what was ever paused.
create table if not exists pyjobs_internal.queue (
    name   text primary key,
    paused boolean not null default false
);

-- What a user started and watches. Recording a batch never writes here: see
-- sql/internal/advance_job.sql. STARTED is not stored: it is PENDING or RETRY with a row in
-- job_start for the same era, so that the first claim does not hold this row
-- (sql/internal/effective_status.sql).
create table if not exists pyjobs_internal.job (
    id                bigint primary key default nextval('pyjobs_internal.job_id'),
    run_at            timestamptz not null,
    created_at        timestamptz not null,
    -- when this run was opened: creation, or the last retry
    run_since         timestamptz not null,
    finished_at       timestamptz,
    -- until when leased batches of a cancelled job may be recorded
    cancel_deadline   timestamptz,
    run               int not null default 1,
    -- grows when STARTED is left for RETRY; see job_start
    era               int not null default 1,
    -- the last run that had all of the items
    full_run          int not null default 1,
    priority          int not null,
    batch_size        int not null,
    max_attempts      int not null,
    status            pyjobs.job_status not null,
    -- made with hold; a release then stands in history
    held              boolean not null,
    sealed            boolean not null,
    paused            boolean not null default false,
    -- false: a claim may have been in flight at the cancel
    cancel_settled    boolean not null default true,
    failure_threshold numeric not null,
    queue             text not null,
    name              text,
    dedupe_key        text,
    params            jsonb not null,
    created_by        text not null,                   -- the session's role
    -- the worker, or the call, that ended this run
    finished_by       text,
    finished_role     text,
    finished_from     pyjobs.job_status,               -- the status that the end was made from
    finished_reason   text,
    constraint job_started_is_derived check (status <> 'STARTED'),
    constraint job_finish_time_is_of_final check ((status in ('SUCCESS', 'FAILURE',
        'REVOKED')) = (finished_at is not null)),
    constraint job_deadline_is_of_canceling check ((status = 'CANCELING') = (
        cancel_deadline is not null))
);

-- The mark "claimed since": only ever inserted, never awaited. First claims that overlap leave a
-- row each.
create table if not exists pyjobs_internal.job_start (
    job_id       bigint not null,
    at           timestamptz not null,
    era          int not null,
    run          int not null,
    worker       text not null,
    session_role text not null
);

-- A step of one run of a job. The row of stage 1 is also the run's ender: the row that only a
-- finisher locks. The totals are written once, when the stage is complete; until then they are read
-- from its batches.
create table if not exists pyjobs_internal.stage (
    job_id            bigint not null,
    run               int not null,
    no                smallint not null,               -- from 1
    barrier           boolean not null,                -- opens only when all before it are done
    open              boolean not null,                -- its batches may be claimed
    -- sealed, all before it done, none of its batches open
    done              boolean not null default false,
    key               text not null,
    total             bigint,                          -- items
    succeeded         bigint,                          -- items
    failed            bigint,                          -- items
    counters          jsonb,
    -- items of earlier runs that this run does not repeat
    carried_succeeded bigint not null default 0,
    carried_counters  jsonb not null default '{}',
    primary key (job_id, run, no),
    constraint stage_totals_are_of_done check (done = (total is not null))
);

-- A run of items that is leased, worked and recorded as one. The ledger: every count is derived
-- from it.
create table if not exists pyjobs_internal.batch (
    id               bigint primary key default nextval('pyjobs_internal.batch_id'),
    job_id           bigint not null,
    -- order of service; a returned batch goes to the end
    pos              bigint not null,
    -- grows with every claim, and when it is fenced
    lease_epoch      bigint not null default 0,
    due_at           timestamptz not null default '-infinity',
    leased_at        timestamptz,
    lease_expires_at timestamptz,
    -- when its lease was given back or taken, last
    returned_at      timestamptz,
    closed_at        timestamptz,                          -- when it was recorded or failed
    run              int not null,
    item_count       int not null,
    attempt          int not null default 0,               -- attempts begun that count
    failed_count     int not null default 0,
    stage            smallint not null,
    state            pyjobs.batch_state not null default 'pending',
    -- by a batch of the stage before; else given by a producer
    emitted          boolean not null default false,
    worker           text,                                 -- who leased it last
    error            text,                                 -- why it was given back or lost, last
    items            jsonb,                                -- null: one item, the job's params
    -- null: none; else [{"index": .., "error": ..}]
    failed           jsonb,
    counters         jsonb,                                -- null: none
    constraint batch_lease_is_of_leased check ((state = 'leased') = (lease_expires_at is not null)),
    constraint batch_closed_is_final check ((state in ('recorded',
        'failed')) = (closed_at is not null)),
    constraint batch_counts check (item_count > 0 and failed_count between 0 and item_count)
);

-- "This job may have work": what claims that may take any job go by, longest unserved first. A job
-- that can be claimed and has a batch to claim has at least one; see sql/internal/offer_job.sql.
create table if not exists pyjobs_internal.offer (
    id       bigint generated always as identity primary key,
    job_id   bigint not null,
    -- not before; the time of its last service, so that it waits its turn
    due_at   timestamptz not null,
    priority int not null,
    queue    text not null
);

-- What happened to a job, but for its creation, its first claim and the end of its present run,
-- which stand in job and job_start: sql/views/timeline.sql has the whole.
create table if not exists pyjobs_internal.history (
    id           bigint generated always as identity primary key,
    job_id       bigint not null,
    at           timestamptz not null,
    run          int not null,
    from_status  pyjobs.job_status,
    to_status    pyjobs.job_status not null,
    session_role text not null,
    by           text not null,
    reason       text
);

-- Results that came too late, as their senders report them.
create table if not exists pyjobs_internal.refusal (
    id           bigint generated always as identity primary key,
    at           timestamptz not null,
    job_id       bigint not null,
    batch_id     bigint not null,
    lease_epoch  bigint not null,
    run          int not null,
    job_status   pyjobs.job_status not null,   -- at the time of the report
    suspicious   boolean not null,             -- false: what a cancel or a retry leaves behind
    stage        text not null,
    sqlstate     text not null,
    detail       text,
    session_role text not null
);

-- Who asked for work lately. Written at most once in a few seconds for each worker.
create table if not exists pyjobs_internal.worker (
    name          text primary key,
    queues        text[] not null,
    last_seen     timestamptz not null,
    last_empty_at timestamptz         -- when it last asked and went away empty
);
