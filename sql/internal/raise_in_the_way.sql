-- pyjobs_internal.raise_in_the_way: say which sessions keep an operator's call from going on.
--
--   job_id   the job
-- Returns     nothing
-- Raises      PJ006, always
-- Locks       nothing
-- Called by   the operators' functions, past their bound
create or replace function pyjobs_internal.raise_in_the_way(job_id bigint)
returns void
language plpgsql
as $$
declare
    sessions text;
begin
    with holder as (
        select l.pid
        from pg_locks l
        where l.granted and l.locktype = 'advisory' and l.objsubid = 1
            and l.database = (select d.oid from pg_database d where d.datname = current_database())
            and (l.classid::bigint << 32) | l.objid::bigint in (
                pyjobs_internal.serving_key(raise_in_the_way.job_id),
                    pyjobs_internal.intake_key(raise_in_the_way.job_id),
                pyjobs_internal.offer_key(raise_in_the_way.job_id))
        union
        select l.pid
        from pg_locks l
        where l.granted and l.locktype = 'transactionid' and l.transactionid in (
            select b.xmax from pyjobs_internal.batch b
            where b.job_id = raise_in_the_way.job_id and b.state = 'leased' and b.xmax <> '0'::xid
            union
            select j.xmax from pyjobs_internal.job j where j.id = raise_in_the_way.job_id
            union
            select o.xmax from pyjobs_internal.offer o where o.job_id = raise_in_the_way.job_id
                and o.xmax <> '0'::xid)
    )
    select string_agg(format('pid %s (%s)', h.pid, concat_ws(', ', a.usename,
        nullif(a.application_name, ''), a.state,
                                                             'transaction since ' || a.xact_start)),
                                                                 '; ' order by h.pid)
    into sessions
    from holder h
    left join pg_stat_activity a on a.pid = h.pid
    where h.pid <> pg_backend_pid();

    raise exception 'job % cannot be changed now: transactions in flight are in the way',
        raise_in_the_way.job_id
        using errcode = 'PJ006',
              detail = coalesce(format('In the way: %s.', sessions), 'They have ended meanwhile.'),
              hint = 'Call again when they have ended, or end one: select '
                     'pg_terminate_backend(pid). Nothing was changed.';
end
$$;
