-- pyjobs.refused: results that came too late, as their senders reported them
--   (pyjobs.report_refused). class is normal for what a cancel, a retry or another attempt leaves
--   behind, and suspicious where the job still ran. job_status is what it was when the report came;
--   stage is the stage's key. The WITH makes the view refuse every write.
-- Read by     roles pyjobs_reader and pyjobs_operator; explain_job
create or replace view pyjobs.refused as
with r as not materialized (select * from pyjobs_internal.refusal)
select
    r.at,
    r.job_id,
    r.batch_id,
    r.stage,
    r.run,
    r.lease_epoch,
    r.job_status,
    case when r.suspicious then 'suspicious' else 'normal' end as class,
    r.sqlstate,
    r.detail,
    r.session_role
from r;

comment on view pyjobs.refused is 'Late results, refused, and whether that was to be expected.';
