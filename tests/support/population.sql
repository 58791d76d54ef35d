-- Jobs in every state, for calls that are made at random; their ids are the same each time.
-- Run by the owner in a database that was just migrated: psql -f tests/support/population.sql
do $$
declare
    j bigint;
    c record;
    n int;
    names constant text[] := array['q', 'q2', 'paused lane',
        E'"; drop schema pyjobs; --\n\x1b[2J%s%n\u202e'];
begin
    -- Pending, of plain and of staged jobs, with one, two and many batches.
    perform pyjobs.enqueue_job('q');
    perform pyjobs.enqueue_job('q', '[1, 2, 3]', batch_size => 2);
    perform pyjobs.enqueue_job('q', '[1, null, {"a": [1]}]', '{"p": 1}', stages => '{a,b,c}',
        barriers => '{b}', priority => 2147483647, dedupe_key => 'key', name => names[4]);
    perform pyjobs.enqueue_job('q2', '[1, 2]', priority => -2147483648, failure_threshold => 0);
    perform pyjobs.enqueue_job(names[4], '["x"]', dedupe_key => names[4]);
    perform pyjobs.enqueue_job('q', '[1]', run_at => '294276-12-31 00:00 UTC');
    perform pyjobs.enqueue_job('q', '[1]', run_at => '4714-11-24 00:00 UTC BC');
    perform pyjobs.enqueue_jobs('q2', '[1, 2]');

    -- Held, unsealed, both, and without any item.
    perform pyjobs.enqueue_job('q', '[1]', hold => true);
    perform pyjobs.enqueue_job('q', '[1]', seal => false, stages => '{a,b}', batch_size => 1000000);
    perform pyjobs.enqueue_job('q', '[]', seal => false);
    perform pyjobs.enqueue_job('q', '[]', seal => false, hold => true);
    perform pyjobs.enqueue_job('q', '[]', hold => true, stages => '{a,b}');

    -- Ended by themselves: well, badly, empty.
    j := pyjobs.enqueue_job('done', '[1, 2]');
    for c in select * from pyjobs.claim_next_batch(j, 'w', 2) loop
        perform pyjobs.record_batch(c.batch_id, c.lease_epoch,
            counters => '{"n": 9223372036854775807}');
    end loop;
    j := pyjobs.enqueue_job('done', '[1, 2]', batch_size => 2, stages => '{a,b}');
    for c in select * from pyjobs.claim_next_batch(j, 'w') loop
        perform pyjobs.record_batch(c.batch_id, c.lease_epoch,
            '[{"index": 0, "error": "a"}, {"index": 1, "error": "b"}]', next_items => '[3, 4]');
    end loop;
    for c in select * from pyjobs.claim_next_batch(j, 'w') loop
        perform pyjobs.record_batch(c.batch_id, c.lease_epoch);
    end loop;
    perform pyjobs.enqueue_job('done', '[]');

    -- Forced, cancelled, set aside, resolved.
    perform pyjobs.finalize_job(pyjobs.enqueue_job('done', '[1, 2]'), 'SUCCESS', 'because');
    perform pyjobs.cancel_job(pyjobs.enqueue_job('done', '[1, 2]'), 'because');
    perform pyjobs.quarantine_job(pyjobs.enqueue_job('q', '[1, 2]'), 'odd');
    j := pyjobs.enqueue_job('q', '[1, 2]');
    perform pyjobs.quarantine_job(j, 'odd');
    perform pyjobs.resolve_job(j, 'RETRY', 'fine');

    -- In its second run, and in one of what had failed alone.
    j := pyjobs.enqueue_job('q', '[1, 2]', batch_size => 2, stages => '{a,b}');
    for c in select * from pyjobs.claim_next_batch(j, 'w') loop
        perform pyjobs.record_batch(c.batch_id, c.lease_epoch, '[{"index": 1, "error": "e"}]',
            '{"n": 1}', '[5]');
    end loop;
    perform pyjobs.cancel_job(j, null, '0');
    perform pyjobs.retry_job(j, true);
    j := pyjobs.enqueue_job('q', '[1]');
    perform pyjobs.cancel_job(j);
    perform pyjobs.retry_job(j);

    -- Waiting for a retry of a batch; with one whose attempts are used up.
    j := pyjobs.enqueue_job('q', '[1, 2]', max_attempts => 1, stages => '{a,b}');
    for c in select * from pyjobs.claim_next_batch(j, 'w', 1) loop
        perform pyjobs.release_batch(c.batch_id, c.lease_epoch, names[4]);
    end loop;
    j := pyjobs.enqueue_job('q', '[1, 2]');
    for c in select * from pyjobs.claim_next_batch(j, 'w', 2) loop
        perform pyjobs.release_batch(c.batch_id, c.lease_epoch, 'again', '365 days');
    end loop;

    -- Paused: a job, and a lane.
    perform pyjobs.pause_job(pyjobs.enqueue_job('q', '[1, 2]'));
    perform pyjobs.enqueue_job('paused lane', '[1, 2]');
    perform pyjobs.pause_queue('paused lane');

    -- Leased: of every kind of job, one batch to its end and one still open; some overdue.
    for n in 1 .. 9 loop
        j := pyjobs.enqueue_job('q', '[1, 2, 3, 4, 5, 6]', batch_size => 2, max_attempts => 2,
            stages => case when n % 2 = 0 then '{a}' else '{a,b,c}' end::text[],
            barriers => case when n % 2 = 0 then '{}' else '{c}' end::text[],
            seal => n <> 3);
        perform pyjobs.claim_next_batch(j, names[1 + n % 4], 2,
            case when n in (5, 6) then interval '1 microsecond' else '1 day' end);
        for c in
            select b.id, b.lease_epoch from pyjobs.batch b
            where b.job_id = j and b.state = 'leased' order by b.id limit 1
        loop
            perform pyjobs.record_batch(c.id, c.lease_epoch,
                '[{"index": 0, "error": "%s"}]', '{"n": 9223372036854775807, "%": 1}',
                case when n % 2 = 1 then '[7]'::jsonb end);
        end loop;
        if n = 4 then
            perform pyjobs.pause_job(j);
        elsif n in (6, 7) then
            perform pyjobs.cancel_job(j, 'stop', '365 days');
        elsif n = 8 then
            -- Claimed again, so that an older epoch is known.
            for c in
                select b.id, b.lease_epoch from pyjobs.batch b
                where b.job_id = j and b.state = 'leased'
            loop
                perform pyjobs.release_batch(c.id, c.lease_epoch);
            end loop;
            perform pyjobs.claim_next_batch(j, 'w', 2, '1 day');
        end if;
    end loop;

    -- The last batch of each is leased: what is recorded ends the job or opens a stage.
    for n in 1 .. 4 loop
        j := pyjobs.enqueue_job('q', '[1, 2]', batch_size => 2,
            stages => case when n < 3 then '{a}' else '{a,b}' end::text[],
            barriers => case when n = 3 then '{b}' else '{}' end::text[]);
        perform pyjobs.claim_next_batch(j, 'w', 1, '1 day');
    end loop;
    perform pyjobs.cancel_job(j, null, '1 day');

    -- A late result that was reported.
    select b.id, b.lease_epoch into c from pyjobs.batch b where b.state = 'recorded'
    order by b.id limit 1;
    perform pyjobs.report_refused(c.id, c.lease_epoch, 'PJ001', names[4]);
end
$$;
