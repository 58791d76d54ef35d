-- The application's own tables, in the same database as the jobs: what a worker writes here commits
-- together with the recording of its batch, or not at all.
create schema if not exists survey;

-- One row for each source in each tile. A row names the lease under which it was written, so that
-- anybody can see later whose result it belongs to.
create table if not exists survey.source (
    job_id      bigint not null,
    batch_id    bigint not null,
    lease_epoch bigint not null,
    worker      text not null,
    tile        int not null,
    number      int not null,
    x           double precision not null,   -- pixels from the left of the picture
    y           double precision not null,   -- pixels from its top
    a           double precision not null,   -- second moments along the axes, in pixels
    b           double precision not null,
    theta       double precision not null,   -- radians, of the long axis
    flux        double precision not null,
    npix        int not null,
    in_core     boolean not null,
    primary key (batch_id, lease_epoch, tile, number)
);
create index if not exists source_of_job on survey.source (job_id);

-- The merged catalogue, brightest first.
create table if not exists survey.catalogue (
    job_id  bigint not null,
    number  int not null,
    x       double precision not null,
    y       double precision not null,
    a       double precision not null,
    b       double precision not null,
    theta   double precision not null,
    flux    double precision not null,
    npix    int not null,
    tile    int not null,                    -- whose row it is
    seen_in int not null,                    -- in how many tiles it was seen
    primary key (job_id, number)
);

-- The same catalogue as a single plain process computes it: what the demo is checked against.
create table if not exists survey.plain (like survey.catalogue including all);
