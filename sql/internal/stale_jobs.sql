-- pyjobs_internal.stale_jobs: the jobs that nobody works although workers ask.
--   STARTED or RETRY, nothing leased, nothing claimed, returned or recorded for that long, although
--   a worker asked for their queue meanwhile and went away empty; and not paused, unsealed,
--   scheduled for later or waiting for a retry. A backlog is not stale: then workers do not go away
--   empty. Also, as the last resort, what was set aside and not decided for 7 days.
--
--   stale_after   for how long
--   job_id        only this one; null: all
-- Returns     job_id, why
-- Raises      nothing
-- Locks       nothing
-- Called by   revoke_stale, before it locks a job and again under the lock
create or replace function pyjobs_internal.stale_jobs(stale_after interval,
    job_id bigint default null)
returns table (stale_id bigint, why text)
language sql
as $$
    select j.id, format('no progress since %s', date_trunc('second', a.at))
    from pyjobs_internal.job j
    cross join lateral (
        select greatest(
            j.run_since,
            (select max(h.at) from pyjobs_internal.history h where h.job_id = j.id),
            (select max(m.at) from pyjobs_internal.job_start m where m.job_id = j.id),
            (select max(greatest(b.leased_at, b.returned_at, b.closed_at))
             from pyjobs_internal.batch b where b.job_id = j.id and b.run = j.run)) as at) a
    where (stale_jobs.job_id is null or j.id = stale_jobs.job_id)
        and pyjobs_internal.effective_status(j.status, j.id, j.era) in ('STARTED', 'RETRY')
        and j.finished_at is null and j.sealed and not j.paused
            and j.run_at <= pyjobs_internal.clock()
        and not exists (select from pyjobs_internal.queue q where q.name = j.queue and q.paused)
        and not exists (select from pyjobs_internal.batch b
                        where b.job_id = j.id and b.run = j.run and b.state = 'leased')
        and not exists (select from pyjobs_internal.batch b
                        where b.job_id = j.id and b.run = j.run and b.state = 'pending'
                            and b.due_at > pyjobs_internal.clock())
        and a.at <= pyjobs_internal.clock() - stale_jobs.stale_after
        and exists (select from pyjobs_internal.worker w where j.queue = any (w.queues)
            and w.last_empty_at > a.at)
    union all
    select j.id, format('set aside since %s and not resolved', date_trunc('second', u.at))
    from pyjobs_internal.job j
    cross join lateral (select max(h.at) as at from pyjobs_internal.history h
                        where h.job_id = j.id and h.to_status = 'UNKNOWN') u
    where (stale_jobs.job_id is null or j.id = stale_jobs.job_id)
        and j.status = 'UNKNOWN' and u.at <= pyjobs_internal.clock() - interval '7 days'
    order by 1
$$;
