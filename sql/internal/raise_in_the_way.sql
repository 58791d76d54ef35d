-- pyjobs_internal.raise_in_the_way: say which sessions keep an operator's call from going on.
--   A row that was locked in a savepoint bears the number of a subtransaction, or of a multixact
--   where it was then changed outside: neither leads to a session. Then all are named that have
--   rows of that kind in hand.
--
--   job_id    the job
--   row_held  true: its own row (or offer) is held; false: its serving, its intake or a lease is
-- Returns     nothing
-- Raises      PJ006, always
-- Locks       nothing
-- Called by   the operators' functions, past their bound
create or replace function pyjobs_internal.raise_in_the_way(job_id bigint, row_held boolean)
returns void
language plpgsql
as $$
declare
    in_the_way text;
begin
    with granted as (
        select l.* from pg_locks l
        where l.granted and l.pid <> pg_backend_pid()
            and coalesce(l.database, 0) in (0, (
                select d.oid from pg_database d where d.datname = current_database()))
    ),
    holder as (
        select g.pid
        from granted g
        where not raise_in_the_way.row_held and g.locktype = 'advisory' and g.objsubid = 1
            and (g.classid::bigint << 32) | g.objid::bigint in (
                pyjobs_internal.serving_key(raise_in_the_way.job_id),
                pyjobs_internal.intake_key(raise_in_the_way.job_id))
        union
        select g.pid
        from granted g
        where g.locktype = 'transactionid' and g.transactionid in (
            select b.xmax from pyjobs_internal.batch b
            where b.job_id = raise_in_the_way.job_id and b.state = 'leased'
                and not raise_in_the_way.row_held
            union
            select j.xmax from pyjobs_internal.job j
            where j.id = raise_in_the_way.job_id and raise_in_the_way.row_held
            union
            select o.xmax from pyjobs_internal.offer o
            where o.job_id = raise_in_the_way.job_id and raise_in_the_way.row_held)
    ),
    suspect as (
        select distinct g.pid
        from granted g
        where g.locktype = 'relation' and g.mode in ('RowShareLock', 'RowExclusiveLock')
            and g.relation = any (case when raise_in_the_way.row_held
                then array['pyjobs_internal.job', 'pyjobs_internal.offer']
                else array['pyjobs_internal.batch'] end::regclass[])
            and not exists (select from holder)
    )
    select format('In the way%s: %s.', case when bool_or(h.certain) then '' else ' is one of' end,
        string_agg(format('pid %s (%s)', h.pid, concat_ws(', ', a.usename,
                nullif(a.application_name, ''), a.state, 'transaction since ' || a.xact_start)),
            '; ' order by h.pid))
    into in_the_way
    from (select pid, true as certain from holder
          union all
          select pid, false from suspect) h
    left join pg_stat_activity a on a.pid = h.pid
    having count(*) > 0;

    raise exception 'job % cannot be changed now: transactions in flight are in the way',
        raise_in_the_way.job_id
        using errcode = 'PJ006',
              detail = coalesce(in_the_way, 'They have ended meanwhile.'),
              hint = 'Call again when they have ended, or end one: select '
                     'pg_terminate_backend(pid). Nothing was changed.';
end
$$;
