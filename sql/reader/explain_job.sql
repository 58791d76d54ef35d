-- pyjobs.explain_job: why a job is where it is, and what would move it.
--
--   job_id    the job
-- Returns     one row a finding, the most decisive first; at least one for every job: finding (one
--             of the names below), evidence (one line), remedy (one line: a command to paste, or
--             what to do). Times are in the session's time zone; a number without a unit is one of
--             batches. The findings: final, quarantined, cancelling, held, unsealed, paused, queue
--             paused, scheduled later, lease overdue, leased (a row for each of the first workers),
--             waiting for a retry, behind a barrier, no worker (none asked for its queue for an
--             hour), behind other jobs, ready, late results (suspicious ones of the last day),
--             stuck (a fault in pyjobs itself)
-- Raises      PJ004 no such job, PJ005 job_id is null
-- Locks       nothing
-- Called by   roles pyjobs_reader and pyjobs_operator
create or replace function pyjobs.explain_job(job_id bigint)
returns setof pyjobs.explanation
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
    set jit = off
as $$
declare
    at_now constant timestamptz := pyjobs_internal.clock();
    workers_shown constant int := 5;
    told pyjobs.explanation[] := '{}';
    due_batches bigint := 0;       -- claimable now, as far as the stages go
    waiting_batches bigint := 0;   -- pending, for whatever reason
    leases bigint;
    j record;
    r record;
begin
    select v.*, s.claimable, s.final
    into j
    from pyjobs.job v
    join pyjobs_internal.job_state s on s.status = v.status
    where v.id = explain_job.job_id;
    if not found then
        perform pyjobs_internal.raise_no_job(explain_job.job_id);
    end if;
    -- Not "b.job_id =", see counts_so_far.
    select count(*) into leases
    from pyjobs_internal.batch b
    where (b.job_id, b.run) >= (j.id, j.run) and (b.job_id, b.run) <= (j.id, j.run)
        and b.state = 'leased';

    -- Ended or set aside: the last transition says by whom, when and why.
    if j.final or j.status = 'UNKNOWN' then
        select t.at, t.by as actor, t.reason into r
        from pyjobs_internal.timeline t
        where t.job_id = j.id
        order by t.seq desc
        limit 1;
        told := told || row(
            case when j.final then 'final' else 'quarantined' end,
            pyjobs_internal.say_short(
                format('%s%s by %s%s',
                    case when j.final then j.status || ' ' end,
                    pyjobs_internal.say_time(r.at, at_now),
                    pyjobs_internal.say_short(r.actor, 24),
                    ': ' || r.reason),
                case when j.final then 48 else 36 end),
            case
                when j.status = 'SUCCESS' then 'nothing to do'
                when j.final then format('select pyjobs.retry_job(%s, true);', j.id)
                else format('select pyjobs.resolve_job(%s, ''RETRY'', ''why'');', j.id)
            end)::pyjobs.explanation;
    end if;

    if j.status = 'CANCELING' then
        told := told || row(
            'cancelling',
            case
                when leases = 0 then 'no lease is out any more'
                when j.cancel_deadline <= at_now then
                    format('%s out, overdue since %s',
                        pyjobs_internal.say_count(leases, 'lease'),
                        pyjobs_internal.say_time(j.cancel_deadline, at_now))
                else
                    format('%s out, until %s',
                        pyjobs_internal.say_count(leases, 'lease'),
                        pyjobs_internal.say_time(j.cancel_deadline, at_now))
            end,
            case
                when leases = 0 or j.cancel_deadline <= at_now then 'select * from pyjobs.reap();'
                else format('select pyjobs.cancel_job(%s, null, ''0'');', j.id)
            end)::pyjobs.explanation;
    end if;

    if j.status = 'CREATED' then
        told := told || row('held', 'made with hold, not released yet',
            format('select pyjobs.release_job(%s);', j.id))::pyjobs.explanation;
    end if;

    if not j.sealed and not j.final then
        told := told || row('unsealed', 'open for more items, so it cannot end',
            format('select pyjobs.seal_job(%s);', j.id))::pyjobs.explanation;
    end if;

    if j.paused and not j.final then
        told := told || row('paused', 'the job is paused: no claims',
            format('select pyjobs.resume_job(%s);', j.id))::pyjobs.explanation;
    end if;

    if j.queue_paused and not j.final then
        told := told || row('queue paused',
            format('queue %s is paused', pyjobs_internal.say_short(j.queue, 24)),
            format('select pyjobs.resume_queue(%L);', j.queue))::pyjobs.explanation;
    end if;

    if j.run_at > at_now and (j.claimable or j.status = 'CREATED') then
        told := told || row('scheduled later',
            format('not before %s', pyjobs_internal.say_time(j.run_at, at_now)),
            'wait until then')::pyjobs.explanation;
    end if;

    -- Who has what out: a row for each of the first workers, those overdue first; one for all
    -- others.
    for r in
        select w.*, row_number() over (order by w.overdue desc, w.first_end, w.worker) as place,
            count(*) over () as workers
        from (
            select b.worker, b.lease_expires_at <= at_now as overdue, count(*) as batches,
                min(b.lease_expires_at) as first_end, max(b.lease_expires_at) as last_end
            from pyjobs_internal.batch b
            where (b.job_id, b.run) >= (j.id, j.run) and (b.job_id, b.run) <= (j.id, j.run)
                and b.state = 'leased'
            group by b.worker, b.lease_expires_at <= at_now) w
        order by place
        limit workers_shown + 1
    loop
        if r.place <= workers_shown then
            told := told || row(
                case when r.overdue then 'lease overdue' else 'leased' end,
                format('%s has %s %s',
                    pyjobs_internal.say_short(r.worker, 16),
                    r.batches,
                    case when r.overdue then 'since ' else 'until ' end
                    || pyjobs_internal.say_time(
                        case when r.overdue then r.first_end else r.last_end end, at_now)),
                case when r.overdue then 'select * from pyjobs.reap();' else 'wait for it' end
            )::pyjobs.explanation;
        else
            told := told || row('leased',
                format('%s more; %s out in all',
                    pyjobs_internal.say_count(r.workers - workers_shown, 'worker'),
                    pyjobs_internal.say_count(leases, 'batch')),
                'wait for them')::pyjobs.explanation;
        end if;
    end loop;

    if j.claimable then
        for r in
            select s.no, s.key, s.open, due.n as due, later.n as later, later.first_due,
                (select e.key from pyjobs_internal.stage e
                 where e.job_id = s.job_id and e.run = s.run and e.no < s.no and not e.done
                 order by e.no
                 limit 1) as waits_for
            from pyjobs_internal.stage s
            cross join lateral (
                select count(*) as n
                from (select from pyjobs_internal.batch b
                      where b.job_id = s.job_id and b.run = s.run and b.stage = s.no
                        and b.state = 'pending' and b.due_at <= at_now
                        -- Not over all that was claimed before.
                        and (b.due_at, b.pos) >= ('-infinity',
                            pyjobs_internal.low_water(s.job_id, s.run, s.no))
                      limit 10001) counted) due
            cross join lateral (
                select count(*) as n, min(counted.due_at) as first_due
                from (select b.due_at from pyjobs_internal.batch b
                      where b.job_id = s.job_id and b.run = s.run and b.stage = s.no
                        and b.state = 'pending' and b.due_at > at_now
                      order by b.due_at
                      limit 10001) counted) later
            where s.job_id = j.id and s.run = j.run and not s.done
            order by s.no
        loop
            waiting_batches := waiting_batches + r.due + r.later;
            if not r.open then
                if r.due + r.later > 0 then
                    told := told || row('behind a barrier',
                        format('stage %s: %s',
                            pyjobs_internal.say_short(r.key, 20),
                            pyjobs_internal.say_count(r.due + r.later, 'batch')),
                        format('wait until stage %s is done',
                            pyjobs_internal.say_short(r.waits_for, 20)))::pyjobs.explanation;
                end if;
                continue;
            end if;
            due_batches := due_batches + r.due;
            if r.later > 0 then
                told := told || row('waiting for a retry',
                    format('%s until %s%s',
                        r.later,
                        pyjobs_internal.say_time(r.first_due, at_now),
                        ': ' || pyjobs_internal.say_short(
                            (select b.error from pyjobs_internal.batch b
                             where b.job_id = j.id and b.run = j.run and b.stage = r.no
                                and b.state = 'pending' and b.due_at = r.first_due
                             limit 1), 18)),
                    'wait until then')::pyjobs.explanation;
            end if;
        end loop;
    end if;

    -- What keeps workers away from what they could have.
    if waiting_batches > 0 and leases = 0
        and not j.paused and not j.queue_paused and j.run_at <= at_now
    then
        select max(w.last_seen) as last_seen into r
        from pyjobs_internal.worker w
        where j.queue = any (w.queues);
        if r.last_seen is null or r.last_seen <= at_now - interval '1 hour' then
            told := told || row('no worker',
                coalesce('nobody asked since ' || pyjobs_internal.say_time(r.last_seen, at_now),
                    'nobody ever asked for its queue'),
                format('start a worker for %s',
                    pyjobs_internal.say_short(j.queue, 18)))::pyjobs.explanation;
        end if;
    end if;

    if due_batches > 0 and not j.paused and not j.queue_paused and j.run_at <= at_now then
        -- Claims go by offers: by priority, and among equals by the time of the last service.
        select
            count(distinct o.job_id) filter (where o.priority > j.priority) as higher,
            max(o.priority) as top,
            count(distinct o.job_id) filter (where o.priority = j.priority and o.due_at <
                (select min(mine.due_at) from pyjobs_internal.offer mine
                 where mine.job_id = j.id)) as equal
        into r
        from (
            select q.job_id, q.priority, q.due_at
            from pyjobs_internal.offer q
            where q.queue = j.queue and q.priority >= j.priority
                and q.due_at <= at_now and q.job_id <> j.id
            order by q.queue, q.priority desc, q.due_at, q.id
            limit 10001) o
        join pyjobs_internal.job other on other.id = o.job_id
        join pyjobs_internal.job_state s on s.status = other.status
        where s.claimable and not other.paused and other.run_at <= at_now;

        if r.higher > 0 or (r.equal > 0 and leases = 0) then
            told := told || row('behind other jobs',
                case
                    when r.higher > 0 then format('%s of higher priority, up to %s',
                        pyjobs_internal.say_count(r.higher, 'job'), r.top)
                    else format('%s of priority %s come first',
                        pyjobs_internal.say_count(r.equal, 'job'), j.priority)
                end,
                format('select pyjobs.set_priority(%s, %s);', j.id,
                    least(r.top::bigint + 1, 2147483647)))::pyjobs.explanation;
        end if;

        told := told || row('ready',
            format('%s can be claimed now', pyjobs_internal.say_count(due_batches, 'batch')),
            'the next claim takes it')::pyjobs.explanation;
    end if;

    select count(*) as n, max(f.at) as last_at into r
    from pyjobs_internal.refusal f
    where f.job_id = j.id and f.suspicious and f.at > at_now - interval '1 day';
    if r.n > 0 then
        told := told || row('late results',
            format('%s refused, last %s', r.n, pyjobs_internal.say_time(r.last_at, at_now)),
            format('look in pyjobs.refused, job_id %s', j.id))::pyjobs.explanation;
    end if;

    -- Neither should ever be seen: a job whose last batch is closed is final in the same commit.
    if j.claimable and j.sealed and leases = 0 and waiting_batches = 0 and not exists (
        select from pyjobs_internal.stage s
        join pyjobs_internal.batch b
            on b.job_id = s.job_id and b.run = s.run and b.stage = s.no and b.closed_at is null
        where s.job_id = j.id and s.run = j.run)
    then
        told := told || row('stuck', 'all batches closed, yet not final',
            format('select * from pyjobs.finalize_job(%s);', j.id))::pyjobs.explanation;
    elsif told = '{}' then
        told := told || row('stuck', 'its rows contradict each other',
            format('select * from pyjobs.audit_job(%s);', j.id))::pyjobs.explanation;
    end if;

    return query select t.* from unnest(told) t;
end
$$;
