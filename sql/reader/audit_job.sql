-- pyjobs.audit_job: does everything that is kept about a job agree with its ledger? Recomputed from
--   the batches' own items, failures and counters, by none of the code that keeps it.
--
--   job_id    the job; null: all jobs
-- Returns     one row a disagreement, and none where all agrees, at any moment and under any load:
--             job_id, stage (its key; null: the job as a whole), what (of which run or batch, where
--             that needs saying), recorded (what is kept), recomputed (what it should be)
-- Raises      PJ004 no such job
-- Locks       nothing. STABLE: all checks see one snapshot
-- Called by   roles pyjobs_reader and pyjobs_operator
create or replace function pyjobs.audit_job(job_id bigint default null)
returns setof pyjobs.discrepancy
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    if audit_job.job_id is not null then
        perform from pyjobs_internal.job j where j.id = audit_job.job_id;
        if not found then
            perform pyjobs_internal.raise_no_job(audit_job.job_id);
        end if;
    end if;

    -- Each batch: its own numbers against what it lists.
    return query
    select b.job_id, s.key, format('%s of batch %s', w.what, b.id), w.recorded, w.recomputed
    from pyjobs_internal.batch b
    join pyjobs_internal.job j on j.id = b.job_id
    left join pyjobs_internal.stage s on s.job_id = b.job_id and s.run = b.run and s.no = b.stage
    cross join lateral (
        select
            case jsonb_typeof(b.items) when 'array' then jsonb_array_length(b.items) else 1 end
                as items,
            case jsonb_typeof(b.failed) when 'array' then jsonb_array_length(b.failed) else 0 end
                as failures) listed
    cross join lateral (values
        ('item_count', b.item_count::text, listed.items::text,
            b.item_count <> listed.items),
        ('failed_count', b.failed_count::text,
            case b.state when 'recorded' then listed.failures
                         when 'failed' then listed.items else 0 end::text,
            b.failed_count <> case b.state when 'recorded' then listed.failures
                                           when 'failed' then listed.items else 0 end),
        ('failed', b.failed::text, 'different indexes of its items',
            b.failed is not null and listed.failures <> (
                select count(distinct (f.entry ->> 'index')::numeric)
                from jsonb_array_elements(
                    case jsonb_typeof(b.failed) when 'array' then b.failed else '[]' end) f (entry)
                where case when f.entry ->> 'index' ~ '^\d{1,10}(\.0+)?$'
                           then (f.entry ->> 'index')::numeric < listed.items end)),
        ('counters', b.counters::text, 'whole numbers from 0, of a recorded batch',
            b.counters is not null and (
                b.state <> 'recorded' or jsonb_typeof(b.counters) <> 'object'
                or exists (select from jsonb_each_text(
                               case jsonb_typeof(b.counters) when 'object' then b.counters
                                                             else '{}' end) c
                           where c.value !~ '^\d{1,19}(\.0+)?$'))),
        ('attempt', b.attempt::text, format('%s to %s',
                case when b.state = 'pending' then 0 else 1 end, j.max_attempts),
            b.attempt not between case when b.state = 'pending' then 0 else 1 end
                and j.max_attempts),
        ('lease_epoch', b.lease_epoch::text, 'from 1', b.state <> 'pending' and b.lease_epoch < 1),
        ('run', b.run::text, format('at most %s', j.run), b.run > j.run),
        ('stage', b.stage::text, 'a stage of its run', s.no is null)
    ) w (what, recorded, recomputed, wrong)
    where (audit_job.job_id is null or b.job_id = audit_job.job_id) and w.wrong;

    -- Each stage of each run, and each job, against the ledger.
    return query
    with ledger as (
        select b.job_id, b.run, b.stage,
            count(*) filter (where b.state in ('pending', 'leased')) as open_batches,
            count(*) filter (where b.state = 'leased') as leased_batches,
            count(*) filter (where b.state = 'leased'
                or b.state = 'pending' and b.xmax not in ('0', b.xmin)) as busy_batches,
            count(*) filter (where b.state <> 'pending') as taken_batches,
            sum(n.items) as total,
            sum(case b.state when 'recorded' then n.items - n.failures else 0 end) as succeeded,
            sum(case b.state when 'recorded' then n.failures
                             when 'failed' then n.items else 0 end) as failed
        from pyjobs_internal.batch b
        cross join lateral (
            select
                case jsonb_typeof(b.items) when 'array' then jsonb_array_length(b.items) else 1 end
                    as items,
                case jsonb_typeof(b.failed) when 'array' then jsonb_array_length(b.failed)
                                            else 0 end as failures) n
        where audit_job.job_id is null or b.job_id = audit_job.job_id
        group by b.job_id, b.run, b.stage
    ),
    stages as (
        select s.*, v.status, j.run as job_run, j.sealed, j.era, j.finished_by, j.finished_from,
            j.failure_threshold, k.finalizable, k.final,
            coalesce(l.open_batches, 0) as open_batches,
            coalesce(l.leased_batches, 0) as leased_batches,
            coalesce(l.taken_batches, 0) as taken_batches,
            coalesce(l.total, 0) as l_total,
            coalesce(l.succeeded, 0) as l_succeeded,
            coalesce(l.failed, 0) as l_failed,
            -- The first stage that is not done is completed by whoever closes its last batch, or
            -- who waits for him: that one may be closing a batch of a later stage, still leased, or
            -- still pending where he claimed it in the same transaction.
            row_number() over (
                partition by s.job_id, s.run, s.done order by s.no) = 1 and not s.done
            and sum(coalesce(l.busy_batches, 0)) over (partition by s.job_id, s.run) = 0
                as is_next,
            bool_and(s.done) over (
                partition by s.job_id, s.run order by s.no
                rows between unbounded preceding and 1 preceding) as before_done
        from pyjobs_internal.stage s
        join pyjobs_internal.job j on j.id = s.job_id
        join pyjobs.job v on v.id = j.id
        join pyjobs_internal.job_state k on k.status = j.status
        left join ledger l on l.job_id = s.job_id and l.run = s.run and l.stage = s.no
        where audit_job.job_id is null or s.job_id = audit_job.job_id
    ),
    stage_checks as (
        select s.job_id, s.key, s.run, s.job_run, w.what, w.recorded, w.recomputed
        from stages s
        cross join lateral (values
            ('total', s.total::text, s.l_total::text, s.done and s.total <> s.l_total),
            ('succeeded', s.succeeded::text, s.l_succeeded::text,
                s.done and s.succeeded <> s.l_succeeded),
            ('failed', s.failed::text, s.l_failed::text, s.done and s.failed <> s.l_failed),
            ('done', 'true', format('%s open batches', s.open_batches),
                s.done and s.open_batches > 0),
            ('done', 'true', 'a stage before it is not done', s.done and not s.before_done),
            ('done', 'true', 'the job is not sealed',
                s.done and s.run = s.job_run and not s.sealed),
            ('done', 'false', 'none of its batches is open',
                s.is_next and s.open_batches = 0 and s.run = s.job_run
                and s.finalizable and s.sealed and s.status <> 'CREATED'),
            ('open', 'false', format('%s batches were claimed', s.taken_batches),
                not s.open and s.taken_batches > 0),
            ('open', 'false', case when s.barrier then 'all stages before it are done'
                                   else 'no barrier' end,
                not s.open and (not s.barrier or coalesce(s.before_done, true))
                and s.run = s.job_run and not s.final),
            ('leases of an ended run', '0', s.leased_batches::text,
                s.leased_batches > 0 and (s.final or s.run < s.job_run)),
            ('leases nobody has claimed', '0', s.leased_batches::text,
                s.leased_batches > 0 and s.run = s.job_run
                and s.status in ('CREATED', 'PENDING', 'RETRY')),
            ('leases of a job set aside', '0', s.leased_batches::text,
                s.leased_batches > 0 and s.run = s.job_run and s.status = 'UNKNOWN'),
            ('stage', s.run::text, format('at most run %s', s.job_run), s.run > s.job_run)
        ) w (what, recorded, recomputed, wrong)
        where w.wrong
    ),
    -- Completion ends a job by what its stages hold, and at once; an operator's decision may
    -- differ.
    job_checks as (
        select s.job_id, w.what, s.status::text as recorded, w.recomputed
        from (
            select s.job_id, s.status, s.final,
                s.finalizable and s.sealed and s.status <> 'CREATED' as completable,
                bool_and(s.done) as all_done,
                sum(s.open_batches) as open_batches,
                bool_or(s.l_failed > s.failure_threshold * s.l_total) as too_many_failed,
                coalesce(bool_or(s.finished_by in ('finalize_job', 'resolve_job')), false)
                    as decided
            from stages s
            where s.run = s.job_run and s.status <> 'REVOKED'
            group by s.job_id, s.status, s.final, s.finalizable, s.sealed) s
        cross join lateral (values
            ('status', format('%s open batches', s.open_batches),
                s.final and not s.decided and s.open_batches > 0),
            ('status', 'not all stages are done', s.final and not s.decided and not s.all_done),
            ('status', case when s.too_many_failed then 'FAILURE' else 'SUCCESS' end,
                s.final and not s.decided and (s.status = 'FAILURE') <> s.too_many_failed),
            ('status', 'all stages are done', s.completable and s.all_done)
        ) w (what, recomputed, wrong)
        where w.wrong
    )
    select c.job_id, c.key,
        c.what || case when c.run <> c.job_run then format(' in run %s', c.run) else '' end,
        c.recorded, c.recomputed
    from stage_checks c
    union all
    select c.job_id, null, c.what, c.recorded, c.recomputed
    from job_checks c;

    -- Each counter of a stage that is done, against the sum over its recorded batches.
    return query
    select coalesce(kept.job_id, summed.job_id), coalesce(kept.key, summed.key),
        format('counter %s%s', coalesce(kept.counter, summed.counter),
            case when coalesce(kept.run, summed.run) <> j.run
                 then format(' in run %s', coalesce(kept.run, summed.run)) else '' end),
        kept.value, summed.value
    from (
        select s.job_id, s.run, s.no, s.key, c.key as counter, c.value
        from pyjobs_internal.stage s
        cross join lateral jsonb_each_text(s.counters) c
        where s.done and (audit_job.job_id is null or s.job_id = audit_job.job_id)) kept
    full join (
        select s.job_id, s.run, s.no, s.key, c.key as counter,
            trim_scale(sum(c.value::numeric))::text as value
        from pyjobs_internal.stage s
        join pyjobs_internal.batch b on b.job_id = s.job_id and b.run = s.run and b.stage = s.no
        cross join lateral jsonb_each_text(
            case jsonb_typeof(b.counters) when 'object' then b.counters else '{}' end) c
        where s.done and b.state = 'recorded' and c.value ~ '^\d{1,19}(\.0+)?$'
            and (audit_job.job_id is null or s.job_id = audit_job.job_id)
        group by s.job_id, s.run, s.no, s.key, c.key) summed
        on summed.job_id = kept.job_id and summed.run = kept.run and summed.no = kept.no
            and summed.counter = kept.counter
    join pyjobs_internal.job j on j.id = coalesce(kept.job_id, summed.job_id)
    where kept.value is distinct from summed.value;

    -- What a run for the failed items only carries over: all that succeeded since the last whole
    -- run.
    return query
    with carrying as (
        select s.job_id, s.no, s.key, j.run, j.full_run, s.carried_succeeded, s.carried_counters
        from pyjobs_internal.stage s
        join pyjobs_internal.job j on j.id = s.job_id and j.run = s.run
        where audit_job.job_id is null or s.job_id = audit_job.job_id
    ),
    earlier as (
        select c.job_id, c.no, b.counters,
            case jsonb_typeof(b.items) when 'array' then jsonb_array_length(b.items) else 1 end
            - case jsonb_typeof(b.failed) when 'array' then jsonb_array_length(b.failed) else 0 end
                as succeeded
        from carrying c
        join pyjobs_internal.batch b on b.job_id = c.job_id and b.stage = c.no
            and b.run >= c.full_run and b.run < c.run
        where b.state = 'recorded'
    )
    select c.job_id, c.key, 'carried succeeded', c.carried_succeeded::text, e.succeeded::text
    from carrying c
    cross join lateral (
        select coalesce(sum(e.succeeded), 0) as succeeded
        from earlier e where e.job_id = c.job_id and e.no = c.no) e
    where c.carried_succeeded <> e.succeeded
    union all
    select c.job_id, c.key, 'carried counters', c.carried_counters::text, e.counters::text
    from carrying c
    cross join lateral (
        select coalesce(jsonb_object_agg(k.key, k.value), '{}') as counters
        from (
            select n.key, trim_scale(sum(n.value::numeric)) as value
            from earlier e
            cross join lateral jsonb_each_text(
                case jsonb_typeof(e.counters) when 'object' then e.counters else '{}' end) n
            where e.job_id = c.job_id and e.no = c.no and n.value ~ '^\d{1,19}(\.0+)?$'
            group by n.key) k) e
    where c.carried_counters <> e.counters;

    -- Each job's own row: its stages, its finish time, its way to where it is.
    return query
    select j.id, null::text, w.what, w.recorded, w.recomputed
    from pyjobs_internal.job j
    join pyjobs_internal.job_state k on k.status = j.status
    cross join lateral (
        select count(*) as stages, max(s.no) as last_no
        from pyjobs_internal.stage s where s.job_id = j.id and s.run = j.run) st
    cross join lateral (values
        ('finished_at', coalesce(j.finished_at::text, 'null'),
            case when k.final then 'a time' else 'null' end,
            k.final <> (j.finished_at is not null)),
        ('stages', st.stages::text, greatest(st.last_no, 1)::text,
            st.stages = 0 or st.stages <> st.last_no),
        ('era', j.era::text, (1 + (
                select count(*) from pyjobs_internal.history h
                where h.job_id = j.id and h.to_status = 'RETRY'))::text,
            j.era <> 1 + (
                select count(*) from pyjobs_internal.history h
                where h.job_id = j.id and h.to_status = 'RETRY')),
        ('first claim', 'before its job was made', j.created_at::text,
            exists (select from pyjobs_internal.job_start f
                    where f.job_id = j.id and (f.run > j.run or f.era > j.era))),
        ('run in the history', j.run::text, (
                select max(h.run) from pyjobs_internal.history h where h.job_id = j.id)::text,
            exists (select from pyjobs_internal.history h
                    where h.job_id = j.id and h.run > j.run))
    ) w (what, recorded, recomputed, wrong)
    where (audit_job.job_id is null or j.id = audit_job.job_id) and w.wrong;

    -- The history is one chain, of allowed steps, from the creation to the present status, with one
    -- end for each run.
    return query
    with chain as (
        select t.*,
            lag(t.to_status) over (partition by t.job_id order by t.seq) as came_to,
            lead(t.seq) over (partition by t.job_id order by t.seq) is null as latest
        from pyjobs_internal.timeline t
        join pyjobs_internal.job j on j.id = t.job_id
        where audit_job.job_id is null or t.job_id = audit_job.job_id
    )
    select c.job_id, null::text, format('history, step %s', c.seq),
        format('from %s', c.from_status), format('from %s', c.came_to)
    from chain c
    where c.from_status is distinct from c.came_to
    union all
    select c.job_id, null, format('history, step %s', c.seq),
        format('%s to %s', c.from_status, c.to_status), 'an allowed transition'
    from chain c
    where c.from_status is not null
        and not exists (select from pyjobs_internal.job_transition t
                        where t.from_status = c.from_status and t.to_status = c.to_status)
    union all
    select c.job_id, null, 'status', v.status::text, format('%s, by the history', c.to_status)
    from chain c
    join pyjobs.job v on v.id = c.job_id
    where c.latest and c.to_status <> v.status
    union all
    select v.id, null, format('ends of run %s', r.run), coalesce(e.ends, 0)::text,
        case when r.run < v.run or k.final then '1' else '0' end
    from pyjobs.job v
    join pyjobs_internal.job_state k on k.status = v.status
    cross join lateral generate_series(1, v.run) r (run)
    left join (
        select c.job_id, c.run, count(*) as ends
        from chain c
        join pyjobs_internal.job_state k on k.status = c.to_status
        where k.final
        group by c.job_id, c.run) e on e.job_id = v.id and e.run = r.run
    where (audit_job.job_id is null or v.id = audit_job.job_id)
        and coalesce(e.ends, 0) <> case when r.run < v.run or k.final then 1 else 0 end;

    -- Work that claims from any job would not find.
    return query
    select found.id, found.key, 'offer', 'none in time', format('due since %s', found.due_at)
    from (
        select j.id, p.key, greatest(j.run_at, p.due_at) as due_at
        from pyjobs_internal.job j
        join pyjobs_internal.job_state k on k.status = j.status
        cross join lateral (
            select s.key, b.due_at
            from pyjobs_internal.stage s
            join pyjobs_internal.batch b on b.job_id = s.job_id and b.run = s.run and b.stage = s.no
            where s.job_id = j.id and s.run = j.run and s.open and not s.done
                and b.state = 'pending'
            order by b.due_at
            limit 1) p
        where k.claimable and not j.paused and j.finished_at is null
            and (audit_job.job_id is null or j.id = audit_job.job_id)) found
    where not exists (
        select from pyjobs_internal.offer o
        where o.job_id = found.id
            and o.due_at <= greatest(found.due_at, pyjobs_internal.clock()));

    -- Work that no claim would find: claims look from the mark on.
    return query
    select b.job_id, s.key, format('position of batch %s', b.id), b.pos::text,
        format('at least %s, the low-water mark', m.pos)
    from pyjobs_internal.batch b
    join pyjobs_internal.stage s on s.job_id = b.job_id and s.run = b.run and s.no = b.stage
    cross join lateral (
        select max(c.pos) as pos from pyjobs_internal.claim_mark c
        where c.job_id = b.job_id and c.run = b.run and c.stage = b.stage) m
    where (audit_job.job_id is null or b.job_id = audit_job.job_id)
        and b.state = 'pending' and b.due_at = '-infinity' and b.pos < m.pos;

    -- What a stage's newest mark says that it had come to, against the batches that it speaks of.
    return query
    with newest as materialized (
        select distinct on (c.job_id, c.run, c.stage) c.*
        from pyjobs_internal.claim_mark c
        where (audit_job.job_id is null or c.job_id = audit_job.job_id) and c.summed_to is not null
        order by c.job_id, c.run, c.stage, c.pos desc, c.total_to desc)
    select m.job_id, s.key,
        format('%s at the mark%s', w.what,
            case when m.run <> j.run then format(' in run %s', m.run) else '' end),
        w.recorded, w.recomputed
    from newest m
    join pyjobs_internal.job j on j.id = m.job_id
    join pyjobs_internal.stage s on s.job_id = m.job_id and s.run = m.run and s.no = m.stage
    cross join lateral (
        select coalesce(sum(n.items) filter (where b.id < m.total_to), 0) as total,
            coalesce(sum(n.items - n.failures) filter (where n.summed), 0) as succeeded,
            coalesce(sum(n.failures) filter (where n.summed), 0) as failed,
            count(*) filter (where b.state in ('pending', 'leased') and n.below) as missed,
            array_agg(b.counters) filter (where n.summed and b.state = 'recorded'
                and jsonb_typeof(b.counters) = 'object') as counters
        from pyjobs_internal.batch b
        cross join lateral (
            select
                case jsonb_typeof(b.items) when 'array' then jsonb_array_length(b.items) else 1 end
                    as items,
                -- An id is listed at the mark of its own stage, if at all. Hashed, in one list.
                b.pos < m.summed_to and b.id not in (
                    select o.id from newest l cross join unnest(l.still_open) o (id)) as below) i
        cross join lateral (
            select i.items,
                case b.state
                    when 'failed' then i.items
                    when 'recorded' then case jsonb_typeof(b.failed)
                        when 'array' then jsonb_array_length(b.failed) else 0 end
                    else 0 end as failures,
                i.below, b.state in ('recorded', 'failed') and i.below as summed) n
        where b.job_id = m.job_id and b.run = m.run and b.stage = m.stage) l
    cross join lateral (
        select coalesce(jsonb_object_agg(k.key, k.value), '{}') as counters
        from (
            select e.key, trim_scale(sum(e.value::numeric)) as value
            from unnest(l.counters) g (given)
            cross join lateral jsonb_each_text(g.given) e
            where e.value ~ '^\d{1,19}(\.0+)?$'
            group by e.key) k) k
    cross join lateral (values
        ('total', m.total::text, l.total::text, m.total <> l.total),
        ('succeeded', m.succeeded::text, l.succeeded::text, m.succeeded <> l.succeeded),
        ('failed', m.failed::text, l.failed::text, m.failed <> l.failed),
        ('open batches not listed', '0', l.missed::text, l.missed > 0),
        ('counters', m.counters::text, k.counters::text, m.counters <> k.counters)
    ) w (what, recorded, recomputed, wrong)
    where w.wrong;

    -- The same of offers.
    return query
    select o.job_id, null::text, format('time of offer %s', o.id), o.due_at::text,
        format('at least %s, the low-water mark', m.due_at)
    from pyjobs_internal.offer o
    cross join lateral (
        select n.due_at, n.after_id from pyjobs_internal.offer_mark n
        where n.queue = o.queue and n.priority = o.priority
        order by n.queue, n.priority desc, n.id desc
        limit 1) m
    where (audit_job.job_id is null or o.job_id = audit_job.job_id)
        and (o.due_at, o.id) <= (m.due_at, m.after_id);

    -- What is left of a job that is not there.
    if audit_job.job_id is null then
        return query
        select lost.job_id, null::text, lost.what, count(*)::text, '0'
        from (
            select b.job_id, 'batches of no job' as what from pyjobs_internal.batch b
            union all
            select m.job_id, 'marks of no job' from pyjobs_internal.claim_mark m
            union all
            select s.job_id, 'stages of no job' from pyjobs_internal.stage s
            union all
            select f.job_id, 'first claims of no job' from pyjobs_internal.job_start f
            union all
            select h.job_id, 'history of no job' from pyjobs_internal.history h
            union all
            select o.job_id, 'offers of no job' from pyjobs_internal.offer o) lost
        where not exists (select from pyjobs_internal.job j where j.id = lost.job_id)
        group by lost.job_id, lost.what;
    end if;
end
$$;
