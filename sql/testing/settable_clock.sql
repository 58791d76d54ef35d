-- pyjobs_internal.clock, settable: the real time and an offset, for tests of leases, graces and
-- schedules.
--   Not deployed by a migration. The owner runs this file in a test database; then update
--   pyjobs_internal.test_clock set ahead = ahead + interval '5 minutes';
-- Returns     the time
-- Raises      nothing
-- Locks       nothing
-- Called by   everything in pyjobs that needs the time, in test databases
create table if not exists pyjobs_internal.test_clock (ahead interval not null default '0');
insert into pyjobs_internal.test_clock (ahead)
select '0' where not exists (select from pyjobs_internal.test_clock);

create or replace function pyjobs_internal.clock()
returns timestamptz
language sql volatile parallel safe
as $$ select clock_timestamp() + t.ahead from pyjobs_internal.test_clock t $$;
