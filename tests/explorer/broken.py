"""Small breaks of the functions, each with a scenario that must notice.

They show that the explorer can find what it is there to find.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Break:
    """Texts put for others in one file of ``sql/``, and the scenarios that must notice."""

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    scenarios: tuple[str, ...]
    bound: int = 2

    def apply(self, root: Path) -> dict[str, str]:
        """The changed file; raises where a text to be replaced is not there exactly once."""
        text = (root / "sql" / self.file).read_text("utf-8")
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} stands {text.count(old)} times")
            text = text.replace(old, new)
        return {self.file: text}


BREAKS = (
    Break(
        "no-hand-over",
        "internal/advance_job.sql",
        (
            (
                "if completed and pyjobs_internal.hand_over("
                "advance_job.job_id, j.run, stage_no) then",
                "if completed and pyjobs_internal.obstacle_any("
                "advance_job.job_id, j.run, stage_no) then",
            ),
        ),
        ("seal-against-the-last-two", "flow-both-stages"),
    ),
    Break(
        "try-advisory-ender",
        "internal/advance_job.sql",
        (
            (
                "perform from pyjobs_internal.stage s\n"
                "                    where s.job_id = advance_job.job_id and s.run = j.run"
                " and s.no = 1\n"
                "                    for update skip locked;",
                "perform from (select pg_try_advisory_xact_lock(advance_job.job_id) as got) t"
                " where t.got;",
            ),
        ),
        ("flow-both-stages+linger", "barrier-both-stages+linger"),
    ),
    Break(
        "claim-without-the-serving-lock",
        "internal/claim_from_job.sql",
        (
            (
                "if not pg_try_advisory_xact_lock_shared("
                "pyjobs_internal.serving_key(claim_from_job.job_id)) then",
                "if false then",
            ),
        ),
        ("cancel-now-against-a-claim-rolled-back", "cancel-now-against-record-and-claim",
         "pair-claim-cancelnow-pending"),
    ),
    Break(
        "epoch-compared-with-at-least",
        "internal/close_batch.sql",
        (
            ("if b.lease_epoch <> close_batch.lease_epoch or",
             "if b.lease_epoch < close_batch.lease_epoch or"),
            ("where o.id = close_batch.batch_id and o.lease_epoch = close_batch.lease_epoch\n",
             "where o.id = close_batch.batch_id and o.lease_epoch >= close_batch.lease_epoch\n"),
        ),
        ("expiry-against-claim", "release-against-claim"),
    ),
    Break(
        "offer-withdrawn-without-its-lock",
        "internal/settle_offer.sql",
        (
            (
                "if not pg_try_advisory_xact_lock("
                "pyjobs_internal.offer_key(settle_offer.job_id)) then",
                "if false then",
            ),
        ),
        ("offer-against-add", "offer-against-release", "offer-against-emission"),
    ),
    Break(
        "no-look-at-flight",
        "internal/obstacle_quiet.sql",
        (
            (
                "            and b.stage = obstacle_quiet.stage\n"
                "            and b.state in ('pending', 'leased')\n"
                "            and (b.xmax = '0'::xid or b.xmax = b.xmin)\n",
                "            and b.stage = obstacle_quiet.stage\n"
                "            and b.state in ('pending', 'leased')\n",
            ),
        ),
        ("last-two",),
    ),
    Break(
        "obstacle-lock-kept",
        "internal/advance_job.sql",
        (
            (
                "                if pyjobs_internal.obstacle_lock("
                "advance_job.job_id, j.run, stage_no,\n"
                "                    false) is not null then\n"
                "                    raise exception using errcode = 'PJ0RB';\n",
                "                if pyjobs_internal.obstacle_lock("
                "advance_job.job_id, j.run, stage_no,\n"
                "                    false) is not null then\n"
                "                    return;\n",
            ),
        ),
        ("three-of-four-touched-before",),
    ),
    Break(
        "update-without-the-guard",
        "internal/close_batch.sql",
        (
            ("where o.id = close_batch.batch_id and o.lease_epoch = close_batch.lease_epoch\n"
             "        and o.state = 'leased';",
             "where o.id = close_batch.batch_id;"),
        ),
        ("same-batch-twice", "cancel-now-against-the-last-two"),
    ),
)  # fmt: skip

# Not noticed, and it may be that nobody could: where all batches of a stage are in flight, the
# stages before it are done and the job is sealed, so that no batch of that stage can come to it.
UNNOTICED = (
    Break(
        "no-fresh-look-after-the-wait",
        "internal/advance_job.sql",
        (
            (
                "if pyjobs_internal.obstacle_any(advance_job.job_id, j.run, stage_no) then",
                "if false then",
            ),
        ),
        ("last-three", "flow", "flow-fused", "two-in-one-transaction"),
    ),
)
