"""What a session can do, and what there is at the start.

Ids are the same in every schedule: the first job is 1, its batches are 1, 2, ..; what the set-up
claims is leased under epoch 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.explorer.run import Op

if TYPE_CHECKING:
    from collections.abc import Callable

COMMIT = Op("commit", "commit")
ROLLBACK = Op("rollback", "rollback")
UNLOCK = Op("select pg_advisory_unlock_all()", "unlock")
SAVEPOINT = Op("savepoint here", "savepoint")
BACK = Op("rollback to here", "back")

Ops = tuple[Op, ...]


def call(text: str, into: str | None = None) -> Op:
    """A call of a public function."""
    return Op(f"select * from pyjobs.{text}", into=into)


def tx(*ops: Op, end: Op = COMMIT) -> Ops:
    """A transaction."""
    return (*ops, end, UNLOCK) if end is COMMIT else (*ops, end)


def enqueue(
    items: int, *, queue: str = "q", leased: int | None = None, job: int = 1, **options: str
) -> tuple[str, ...]:
    """A job of so many batches of one item, so many of them leased (None: all)."""
    given = ", ".join(f"{name} => {value}" for name, value in options.items())
    numbers = ", ".join(map(str, range(items)))
    made = f"select pyjobs.enqueue_job('{queue}', '[{numbers}]'{', ' if given else ''}{given})"
    leased = items if leased is None else leased
    if not leased:
        return (made,)
    return made, f"select * from pyjobs.claim_next_batch({job}, 'w', {leased})"


def two_jobs(items: int, *, leased: bool = True, seal: bool = True) -> tuple[str, ...]:
    """Two jobs of so many batches, of queues of their own; the batches' numbers run on."""
    made = tuple(
        statement
        for queue in ("q", "r")
        for statement in enqueue(
            items, leased=0, queue=queue, **({} if seal else {"seal": "false"})
        )
    )
    if not leased:
        return made
    return (*made, *(f"select * from pyjobs.claim_next_batch({n}, 'w', {items})" for n in (1, 2)))


def record(batch: int, epoch: int = 1, *, emit: int = 0, failed: bool = False) -> Op:
    more = ", ".join(f'"emit{n}"' for n in range(emit))
    extra = f", next_items => '[{more}]'" if emit else ""
    if failed:
        extra += ', failed => \'[{"index": 0, "error": "no"}]\''
    return call(f"record_batch({batch}, {epoch}, counters => '{{\"n\": {batch}}}'{extra})")


def claim(worker: str = "v", batches: int = 1) -> Op:
    return call(f"claim_next_job('{worker}', '{{q}}', {batches})", "got")


RECORD_GOT = call("record_batch({got.batch_id}, {got.lease_epoch})")
FUSED = call("record_and_claim({got.batch_id}, {got.lease_epoch}, 'v')", "got")


# What there is at the start, by name.
SETUPS: dict[str, tuple[str, ...]] = {
    "two": enqueue(2),
    "mix": enqueue(2, leased=1),
    "pending": enqueue(2, leased=0),
    "once": enqueue(2, max_attempts="1"),
    "unsealed": enqueue(2, seal="false"),
    "open": enqueue(1, leased=0, seal="false"),
    "barrier": enqueue(2, stages="'{a,b}'", barriers="'{b}'"),
    "flow": enqueue(2, stages="'{a,b}'"),
    "held": enqueue(1, leased=0, hold="true"),
    "paused": (*enqueue(2, leased=1), "select pyjobs.pause_job(1)"),
    "queue": (*enqueue(2, leased=1), "select pyjobs.pause_queue('q')"),
    "expired": (
        *enqueue(2, max_attempts="1"),
        "update pyjobs_internal.test_clock set ahead = '2 minutes'",
    ),
    "cancelling": (*enqueue(2), "select pyjobs.cancel_job(1)"),
    "unknown": (*enqueue(2, leased=1), "select pyjobs.quarantine_job(1, 'odd')"),
    "final": (
        *enqueue(2),
        "select pyjobs.record_batch(1, 1)",
        'select pyjobs.record_batch(2, 1, \'[{"index": 0, "error": "no"}]\')',
    ),
}
_LIVE = ("two", "mix", "once", "unsealed", "barrier", "flow", "paused", "expired", "cancelling")

# What a session does, for the pairs and for the random scenes: by the batch that it has.
ACTIONS: dict[str, tuple[Callable[[int], Ops], tuple[str, ...]]] = {
    "record": (lambda b: (record(b),), _LIVE),
    "fail": (lambda b: (record(b, failed=True),), ("two",)),
    "emit": (lambda b: (record(b, emit=1),), ("barrier", "flow")),
    "fused": (
        lambda b: (call(f"record_and_claim({b}, 1, 'v{b}')", "got"),),
        ("two", "mix", "flow", "cancelling"),
    ),
    "fused on": (
        lambda b: (call(f"record_and_claim({b}, 1, 'v{b}', queues => '{{q}}')", "got"),),
        ("two", "mix", "unknown"),
    ),
    "batches": (
        lambda b: (call(f"record_batches('{{{b}}}', '{{1}}')"),),
        ("two", "mix", "cancelling"),
    ),
    "extend": (lambda b: (call(f"extend_lease({b}, 1)"),), ("two", "expired", "cancelling")),
    "release": (
        lambda b: (call(f"release_batch({b}, 1)"),),
        ("two", "mix", "cancelling", "unsealed"),
    ),
    "giveup": (lambda b: (call(f"release_batch({b}, 1, 'bad')"),), ("once", "mix", "cancelling")),
    "later": (lambda b: (call(f"release_batch({b}, 1, 'bad', '1 hour')"),), ("mix", "two")),
    "refused": (lambda b: (call(f"report_refused({b}, 7, 'PJ001')"),), ("two",)),
    "claim": (
        lambda b: (claim(f"v{b}"),),
        (
            "mix",
            "pending",
            "open",
            "flow",
            "queue",
            "expired",
            "paused",
            "unknown",
            "final",
            "held",
        ),
    ),
    "claimhere": (
        lambda b: (call(f"claim_next_batch(1, 'v{b}')", "got"),),
        ("mix", "pending", "open", "paused", "final"),
    ),
    "claimmany": (lambda b: (call(f"claim_jobs('v{b}', '{{q}}', 2)", "got"),), ("mix", "pending")),
    "reapleases": (lambda _: (call("reap_leases()"),), ("expired", "cancelling")),
    "purge": (lambda _: (call("purge_jobs('0')"),), ("two", "final", "cancelling")),
    "enqueuemany": (lambda b: (call(f"enqueue_jobs('q', '[{b}, {b}]')"),), ("two", "pending")),
    "succeed": (lambda _: (call("finalize_job(1, 'SUCCESS', 'so')"),), ("mix", "flow", "open")),
    "cancel": (lambda _: (call("cancel_job(1)"),), (*SETUPS,)),
    "cancelnow": (lambda _: (call("cancel_job(1, null, '0')"),), (*SETUPS,)),
    "reap": (lambda _: (call("reap()"),), ("expired", "cancelling")),
    "stale": (lambda _: (call("reap('0')"),), ("mix", "unsealed")),
    "finalize": (lambda _: (call("finalize_job(1)"),), ("two", "mix", "unsealed")),
    "force": (lambda _: (call("finalize_job(1, 'FAILURE', 'so')"),), ("two", "mix", "barrier")),
    "quarantine": (
        lambda _: (call("quarantine_job(1, 'odd')"),),
        ("two", "mix", "pending", "open"),
    ),
    "resolve": (lambda _: (call("resolve_job(1, 'RETRY', 'fine')"),), ("unknown",)),
    "giveupon": (lambda _: (call("resolve_job(1, 'FAILURE', 'bad')"),), ("unknown",)),
    "pause": (lambda _: (call("pause_job(1)"),), ("two", "mix", "pending", "open")),
    "resume": (lambda _: (call("resume_job(1)"),), ("paused",)),
    "pausequeue": (lambda _: (call("pause_queue('q')"),), ("mix", "pending")),
    "resumequeue": (lambda _: (call("resume_queue('q')"),), ("queue",)),
    "priority": (lambda _: (call("set_priority(1, 5)"),), ("mix", "pending", "open")),
    "retry": (lambda _: (call("retry_job(1)"),), ("final", "two")),
    "retryfailed": (lambda _: (call("retry_job(1, true)"),), ("final",)),
    "seal": (lambda _: (call("seal_job(1)"),), ("unsealed", "open")),
    "add": (lambda b: (call(f"add_items(1, '[\"add{b}\"]')"),), ("unsealed", "open")),
    "addlate": (
        lambda b: (call(f"add_items(1, '[\"add{b}\"]')"),),
        ("two",),
    ),
    "releasejob": (lambda _: (call("release_job(1)"),), ("held",)),
    "enqueue": (
        lambda b: (call(f"enqueue_job('q', '[{b}]', dedupe_key => 'k')"),),
        ("two", "pending"),
    ),
}
