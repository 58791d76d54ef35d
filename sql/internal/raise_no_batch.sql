-- pyjobs_internal.raise_no_batch: say that there is no such batch.
--
--   batch_id   the id asked for; null is refused as an argument
-- Returns     nothing
-- Raises      PJ004, or PJ005 for a null
-- Locks       nothing
-- Called by   every public function that takes a batch's id
create or replace function pyjobs_internal.raise_no_batch(batch_id bigint)
returns void
language plpgsql
as $$
begin
    if raise_no_batch.batch_id is null then
        perform pyjobs_internal.raise_invalid('batch_id', 'a batch''s id', null);
    end if;
    raise exception 'there is no batch %', raise_no_batch.batch_id
        using errcode = 'PJ004',
              detail = 'No batch has that id; its job may have been purged.',
              hint = 'Use the batch_id and lease_epoch that the claim returned.';
end
$$;
