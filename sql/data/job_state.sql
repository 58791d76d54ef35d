-- job_state, job_transition: the state machine as data; its only home. The guard on the job table,
-- the functions, the diagram in the documentation and the tests read these rows. CANCELING and
-- UNKNOWN are not finalizable: a completion that arrives late must not resurrect a cancelled job,
-- nor end one that an operator has set aside. Locks: the rows that it writes. Safe to run again.
insert into pyjobs_internal.job_state (status, claimable, finalizable, running, final, meaning)
values
    ('CREATED',   false, true,  false, false, 'made and held back'),
    ('PENDING',   true,  true,  true,  false, 'released, nothing claimed yet'),
    ('STARTED',   true,  true,  true,  false, 'claimed at least once'),
    ('RETRY',     true,  true,  true,  false, 'to be worked again, nothing claimed since'),
    ('CANCELING', false, false, true,  false, 'cancelled, leased batches may still be recorded'),
    ('UNKNOWN',   false, false, true,  false, 'set aside until an operator decides'),
    ('SUCCESS',   false, false, false, true,  'complete'),
    ('FAILURE',   false, false, false, true,
        'complete, with too many failed items; or ended by force'),
    ('REVOKED',   false, false, false, true,  'ended before it was complete')
on conflict (status) do update
set claimable = excluded.claimable, finalizable = excluded.finalizable, running = excluded.running,
    final = excluded.final, meaning = excluded.meaning;

delete from pyjobs_internal.job_transition;
insert into pyjobs_internal.job_transition (from_status, to_status, by)
values
    ('CREATED', 'PENDING', 'release'),
    ('PENDING', 'STARTED', 'the first claim'),
    ('RETRY',   'STARTED', 'the first claim'),
    ('PENDING', 'UNKNOWN', 'quarantine'),
    ('STARTED', 'UNKNOWN', 'quarantine'),
    ('RETRY',   'UNKNOWN', 'quarantine'),
    ('UNKNOWN', 'RETRY',   'resolve'),
    ('UNKNOWN', 'FAILURE', 'resolve'),
    ('CANCELING', 'REVOKED', 'cancel, the last lease, or the reaper'),
    ('UNKNOWN', 'REVOKED', 'cancel or the reaper'),
    ('SUCCESS', 'RETRY', 'retry'),
    ('FAILURE', 'RETRY', 'retry'),
    ('REVOKED', 'RETRY', 'retry');

-- Every finalizable state may be completed, and cancelled.
insert into pyjobs_internal.job_transition (from_status, to_status, by)
select s.status, t.to_status, t.by
from pyjobs_internal.job_state s
cross join (values
    ('SUCCESS'::pyjobs.job_status, 'completion or finalize'),
    ('FAILURE'::pyjobs.job_status, 'completion or finalize'),
    ('CANCELING'::pyjobs.job_status, 'cancel with leases out'),
    ('REVOKED'::pyjobs.job_status, 'cancel with none out, finalize, or the reaper')) t (to_status,
        by)
where s.finalizable;
