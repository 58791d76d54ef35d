-- pyjobs.job: every job as people see it, one row each.
--   The status is the effective one: STARTED is PENDING or RETRY with a claim since. This says the
--   same as pyjobs_internal.effective_status, in place, so that it belongs to the snapshot of
--   whoever reads the view and needs no right to call anything. (A scalar subselect, because EXISTS
--   may be planned as a hash of the whole job_start.) The join makes the view refuse every write;
--   it costs nothing where queue_paused is not asked for. Times are null until they are reached;
--   stages are the keys of the present run, in order.
-- Read by     roles pyjobs_reader and pyjobs_operator; the readers' functions
create or replace view pyjobs.job as
select
    j.id,
    j.queue,
    j.name,
    case
        when j.status in ('PENDING', 'RETRY')
            and (select true from pyjobs_internal.job_start s
                 where s.job_id = j.id and s.era = j.era
                 limit 1)
        then 'STARTED'::pyjobs.job_status
        else j.status
    end as status,
    j.run,
    j.priority,
    j.params,
    j.batch_size,
    j.max_attempts,
    j.failure_threshold,
    j.dedupe_key,
    j.run_at,
    j.sealed,
    j.paused,
    coalesce(q.paused, false) as queue_paused,
    j.created_at,
    j.created_by,
    (select min(s.at) from pyjobs_internal.job_start s
     where s.job_id = j.id and s.run = j.run) as started_at,
    j.finished_at,
    j.finished_by,
    j.finished_reason as reason,
    j.cancel_deadline,
    array(select s.key from pyjobs_internal.stage s
          where s.job_id = j.id and s.run = j.run
          order by s.no) as stages
from pyjobs_internal.job j
left join pyjobs_internal.queue q on q.name = j.queue;

comment on view pyjobs.job is 'Every job: its status, settings and times.';
