-- pyjobs_internal.set_queue_paused: set or clear a queue's pause, and wake who listens.
--
--   queue    the queue's name; it need not have jobs yet
--   paused   what it is to be
-- Returns     nothing
-- Raises      PJ005 bad name, PJ006 somebody else is changing it, past the caller's lock_timeout
-- Locks       the queue's row; as wake_workers
-- Called by   pause_queue, resume_queue
create or replace function pyjobs_internal.set_queue_paused(queue text, paused boolean)
returns void
language plpgsql
as $$
begin
    perform pyjobs_internal.require_text('queue', set_queue_paused.queue);
    insert into pyjobs_internal.queue as q (name, paused)
    values (set_queue_paused.queue, set_queue_paused.paused)
    on conflict (name) do update set paused = excluded.paused;
    if not set_queue_paused.paused then
        perform pyjobs_internal.wake_workers(set_queue_paused.queue);
    end if;
exception when lock_not_available or deadlock_detected then
    -- Nobody else writes that table.
    raise exception 'queue % cannot be changed now: transactions in flight are in the way',
        set_queue_paused.queue
        using errcode = 'PJ006',
              detail = coalesce((
                  select format('In the way: %s.', string_agg(format('pid %s (%s)', a.pid,
                      concat_ws(', ', a.usename, nullif(a.application_name, ''), a.state,
                          'transaction since ' || a.xact_start)), '; ' order by a.pid))
                  from pg_locks l
                  join pg_stat_activity a on a.pid = l.pid
                  where l.granted and l.locktype = 'relation' and l.mode = 'RowExclusiveLock'
                      and l.relation = 'pyjobs_internal.queue'::regclass
                      and l.database = a.datid and a.datname = current_database()
                      and a.pid <> pg_backend_pid()
                  having count(*) > 0), 'They have ended meanwhile.'),
              hint = 'Call again when they have ended, or end one: select '
                     'pg_terminate_backend(pid). Nothing was changed.';
end
$$;
