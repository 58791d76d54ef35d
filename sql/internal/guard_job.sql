-- pyjobs_internal.guard_job: the database's own refusal of an illegal change, from anybody.
--   Final is final: a row in a final state takes no update but the one that opens the next run (run
--   + 1, RETRY, no finish time). Any other change of status must be an allowed transition. Only
--   final jobs are deleted.
-- Returns     trigger
-- Raises      PJ003
-- Locks       nothing beyond the row that is written
-- Called by   every insert and delete of pyjobs_internal.job, and every update of what it guards
create or replace function pyjobs_internal.guard_job()
returns trigger
language plpgsql
as $$
declare
    seen pyjobs.job_status;
begin
    if tg_op = 'INSERT' then
        if new.status not in ('CREATED', 'PENDING') then
            raise exception 'a job cannot begin as %', new.status
                using errcode = 'PJ003', hint = 'Jobs are made by pyjobs.enqueue_job.';
        end if;
        return new;
    end if;

    if tg_op = 'DELETE' then
        if old.finished_at is null then
            raise exception 'job % is %: only a final job can be deleted', old.id, old.status
                using errcode = 'PJ003', hint = format('End it first: select pyjobs.cancel_job(%s)',
                    old.id);
        end if;
        return old;
    end if;

    if old.finished_at is not null then
        if new.id = old.id and new.queue = old.queue and new.created_at = old.created_at
            and new.run = old.run + 1
            and new.status = 'RETRY'
            and new.finished_at is null
        then
            return new;
        end if;
        raise exception 'job % is %, which is final: nothing changes it within its run', old.id,
            old.status
            using errcode = 'PJ003',
                  detail = format('It ended at %s.', old.finished_at),
                  hint = format('Start its next run: select pyjobs.retry_job(%s)', old.id);
    end if;

    if new.id <> old.id or new.queue <> old.queue or new.run <> old.run
        or new.created_at <> old.created_at then
        raise exception 'job %: its id, queue, run and creation time do not change',
            old.id using errcode = 'PJ003';
    end if;

    -- From what is stored there is no way that STARTED has not, but the one to STARTED itself,
    -- which is never stored: so what is allowed from there needs no look whether it was claimed.
    if new.status <> old.status and not exists (
        select from pyjobs_internal.job_transition t
        where t.from_status = old.status and t.to_status = new.status)
    then
        seen := pyjobs_internal.effective_status(old.status, old.id, old.era);
        if not exists (select from pyjobs_internal.job_transition t
                       where t.from_status = seen and t.to_status = new.status)
        then
            raise exception 'job % cannot go from % to %', old.id, seen, new.status
                using errcode = 'PJ003',
                      detail = format('From %s it can go to %s.', seen,
                          (select string_agg(t.to_status::text, ', ' order by t.to_status)
                           from pyjobs_internal.job_transition t where t.from_status = seen)),
                      hint = format('Ask: select * from pyjobs.explain_job(%s)', old.id);
        end if;
    end if;
    return new;
end
$$;

create or replace trigger guard_job
    before insert or delete on pyjobs_internal.job
    for each row execute function pyjobs_internal.guard_job();

-- An update is looked at where it changes what is guarded. Not called for the one by which jobs
-- end a thousand times a second, which the table allows wherever a job is stored as claimable: the
-- call costs as much as both index entries that the update writes.
create or replace trigger guard_job_update
    before update on pyjobs_internal.job
    for each row
    when (old.finished_at is not null
        or new.id <> old.id or new.queue <> old.queue or new.run <> old.run
        or new.created_at <> old.created_at
        or new.status <> old.status
            and not (new.status = 'SUCCESS' and old.status in ('PENDING', 'RETRY')))
    execute function pyjobs_internal.guard_job();
