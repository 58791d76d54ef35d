"""Who does what: small scenes on one job or two.

Ids are the same in every schedule: the first job is 1, its batches are 1, 2, ..; what the set-up
claims is leased under epoch 1.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from tests.explorer.run import Op, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def pairs() -> Iterator[Scenario]:
    """Every pair of what changes something, on one job, in each scene that suits both."""
    for first, second in itertools.combinations_with_replacement(ACTIONS, 2):
        one, scenes = ACTIONS[first]
        two, others = ACTIONS[second]
        shared = [s for s in scenes if s in others] or [min(scenes, others, key=len)[0]]
        for scene in shared:
            yield Scenario(
                f"pair-{first}-{second}-{scene}", SETUPS[scene], (tx(*one(1)), tx(*two(2)))
            )


def _again(b: int) -> Ops:
    return tx(record(b), end=ROLLBACK) + tx(record(b))


def named() -> Iterator[Scenario]:
    """The scenes that matter most."""

    def scene(name: str, setup: str | tuple[str, ...], *sessions: Ops, jobs: int = 1) -> Scenario:
        return Scenario(name, SETUPS[setup] if isinstance(setup, str) else setup, sessions, jobs)

    two, three = enqueue(2), enqueue(3)
    yield scene("last-two", two, tx(record(1)), tx(record(2)))
    yield scene("last-two-one-rolled-back", two, _again(1), tx(record(2)))
    yield scene("last-two-both-rolled-back", two, _again(1), _again(2))
    yield scene("last-three", three, tx(record(1)), tx(record(2)), tx(record(3)))
    again = "savepoint s; select pyjobs.record_batch({}, 1); rollback to s"
    yield scene(
        "three-of-four-touched-before",
        (*enqueue(4), *(again.format(b) for b in (2, 3, 4))),
        tx(record(1)),
        tx(record(2)),
        tx(record(3)),
    )
    yield scene("last-three-rolled-back", three, _again(1), _again(2), tx(record(3)))
    yield scene(
        "last-two-and-a-savepoint",
        two,
        tx(SAVEPOINT, record(1), BACK, record(1)),
        tx(record(2)),
    )
    yield scene(
        "savepoint-only", two, tx(SAVEPOINT, record(1), BACK) + tx(record(1)), tx(record(2))
    )
    yield scene("two-in-one-transaction", three, tx(record(1), record(2)), tx(record(3)))
    yield scene("same-batch-twice", two, tx(record(1)), tx(record(1)), tx(record(2)))
    yield scene(
        "failed-over-the-threshold", two, tx(record(1, failed=True)), tx(record(2, failed=True))
    )

    for name, stop in {
        "cancel": "cancel_job(1)",
        "cancel-now": "cancel_job(1, null, '0')",
        "quarantine": "quarantine_job(1, 'odd')",
        "force": "finalize_job(1, 'SUCCESS')",
        "finalize": "finalize_job(1)",
        "pause": "pause_job(1)",
    }.items():
        yield scene(
            f"{name}-against-the-last-two", two, tx(record(1)), tx(record(2)), tx(call(stop))
        )
        yield scene(
            f"{name}-against-record-and-claim",
            enqueue(3, leased=1),
            tx(record(1)) + tx(claim()) + tx(RECORD_GOT),
            tx(call(stop)),
        )
        yield scene(
            f"{name}-against-a-claim-rolled-back",
            enqueue(1, leased=0),
            tx(claim(), end=ROLLBACK) + tx(claim()),
            tx(call(stop)),
        )
        yield scene(
            f"{name}-against-fused",
            enqueue(3, leased=1),
            tx(call("record_and_claim(1, 1, 'v')", "got")) + tx(FUSED),
            tx(call(stop)),
        )
        yield scene(f"{name}-against-add", "unsealed", tx(record(1)), ADD, tx(call(stop)))
        yield scene(f"{name}-twice", two, tx(record(1)), tx(call(stop)), tx(call(stop)))
        yield scene(
            f"{name}-against-a-record-rolled-back", two, _again(1), tx(record(2)), tx(call(stop))
        )

    reap = tx(call("reap()"))
    yield scene("expiry-against-the-last-two", "expired", tx(record(1)), tx(record(2)), reap)
    yield scene("expiry-twice", "expired", tx(record(1)), reap, reap)
    yield scene("expiry-rolled-back", "expired", tx(record(1)), tx(call("reap()"), end=ROLLBACK))
    yield scene("idle-reaper", two, tx(record(1)), tx(record(2)), tx(call("reap()"), end=ROLLBACK))
    late = "update pyjobs_internal.test_clock set ahead = '2 minutes'"
    yield scene(
        "expiry-against-claim",
        (*enqueue(1), late),
        tx(record(1)),
        reap,
        tx(claim("v")) + tx(RECORD_GOT),
    )
    yield scene("extend-against-expiry", (*enqueue(1), late), tx(call("extend_lease(1, 1)")), reap)
    yield scene(
        "overdue-cancel",
        (*enqueue(2), "select pyjobs.cancel_job(1)", late),
        tx(record(1)),
        tx(record(2)),
        reap,
    )
    yield scene(
        "release-against-claim",
        enqueue(1),
        tx(call("release_batch(1, 1)")),
        tx(claim()) + tx(RECORD_GOT),
    )
    yield scene("give-up-against-the-last", enqueue(2, max_attempts="1"), GIVE_UP, tx(record(2)))
    yield scene(
        "give-up-rolled-back", "once", tx(GIVE_UP[0], end=ROLLBACK) + GIVE_UP, tx(record(2))
    )

    # Stages.
    yield scene("barrier", "barrier", tx(record(1, emit=1)), tx(record(2)))
    yield scene(
        "barrier-and-claim", "barrier", tx(record(1, emit=1)), tx(record(2)), CLAIM_AND_RECORD
    )
    yield scene(
        "barrier-rolled-back",
        "barrier",
        tx(record(1, emit=1), end=ROLLBACK) + tx(record(1, emit=1)),
        tx(record(2)),
    )
    yield scene("flow", "flow", tx(record(1, emit=1)), tx(record(2)), CLAIM_AND_RECORD)
    yield scene(
        "flow-fused",
        enqueue(1, stages="'{a,b}'"),
        tx(record(1, emit=2)),
        CLAIM_AND_RECORD,
        CLAIM_AND_RECORD,
    )
    for barrier in ("'{}'", "'{b}'"):

        def staged(items: int, leased: int | None = None, seal: str = "true") -> tuple[str, ...]:
            return enqueue(
                items,
                leased=leased,
                seal=seal,
                stages="'{a,b}'",
                barriers=barrier,  # noqa: B023
            )

        name = "barrier" if "b" in barrier else "flow"
        yield scene(
            f"{name}-both-stages",
            (*staged(2, 1), EMITTED, "select * from pyjobs.claim_next_batch(1, 'w', 9)"),
            *(
                [tx(record(2)), tx(record(3)), tx(record(4))]
                if name == "flow"
                else [tx(record(2, emit=1)), CLAIM_AND_RECORD]
            ),
        )
        yield scene(
            f"{name}-cancel",
            staged(1),
            tx(record(1, emit=1)),
            CLAIM_AND_RECORD,
            tx(call("cancel_job(1)")),
        )
        yield scene(
            f"{name}-seal",
            staged(1, seal="false"),
            tx(record(1, emit=1)),
            CLAIM_AND_RECORD,
            SEAL,
        )
        yield scene(
            f"{name}-seal-no-items",
            staged(2, seal="false"),
            tx(record(1)),
            tx(record(2)),
            SEAL,
        )

    # Unsealed jobs.
    yield scene("seal-against-the-last-two", "unsealed", tx(record(1)), tx(record(2)), SEAL)
    yield scene("seal-against-add", "unsealed", tx(record(1)), ADD, SEAL)
    yield scene(
        "seal-rolled-back",
        "unsealed",
        tx(record(1)),
        tx(record(2)),
        tx(SEAL[0], end=ROLLBACK) + SEAL,
    )
    yield scene("add-rolled-back", "open", tx(ADD[0], end=ROLLBACK) + ADD, CLAIM_AND_RECORD, SEAL)

    # Offers: a claim withdraws one while somebody makes a batch claimable.
    takers = tx(claim("v", 9))
    first_of_two = enqueue(1, stages="'{a,b}'")
    behind = enqueue(1, stages="'{a,b}'", barriers="'{b}'")
    waiting = enqueue(1, leased=0)
    for name, setup, adder in (
        ("add", "open", ADD),
        ("emission", first_of_two, tx(record(1, emit=1))),
        ("barrier", behind, tx(record(1, emit=1))),
        ("release", enqueue(2, leased=1), tx(call("release_batch(1, 1)"))),
        ("expiry", (*enqueue(2, leased=1), late), reap),
        ("retry-later", enqueue(2, leased=1), tx(call("release_batch(1, 1, 'bad', '1 hour')"))),
        ("resume", (*waiting, "select pyjobs.pause_job(1)"), tx(call("resume_job(1)"))),
        ("resume-queue", (*waiting, PAUSE_QUEUE), tx(call("resume_queue('q')"))),
        ("retry", "final", tx(call("retry_job(1)"))),
        ("resolve", "unknown", tx(call("resolve_job(1, 'RETRY', 'fine')"))),
        ("release-job", "held", tx(call("release_job(1)"))),
        ("priority", enqueue(2, leased=0), tx(call("set_priority(1, 7)"))),
        ("claim-rolled-back", enqueue(1, leased=0), tx(claim("u"), end=ROLLBACK)),
    ):  # fmt: skip
        yield scene(f"offer-against-{name}", setup, adder, takers)
        yield scene(f"offer-against-{name}-twice", setup, adder, takers, tx(claim("u")))
        yield scene(
            f"offer-against-{name}-rolled-back",
            setup,
            tx(*adder[:-2], end=ROLLBACK) + adder,
            takers,
        )

    # Runs.
    yield scene(
        "retry-against-retry", "final", tx(call("retry_job(1)")), tx(call("retry_job(1, true)"))
    )
    yield scene(
        "retry-against-cancel",
        "final",
        tx(call("retry_job(1)")),
        tx(call("cancel_job(1)")),
        CLAIM_AND_RECORD,
    )
    yield scene(
        "cancel-and-retry-against-a-late-result",
        two,
        tx(call("cancel_job(1, null, '0')")) + tx(call("retry_job(1)")),
        tx(record(1)),
        tx(record(2)),
    )
    yield scene(
        "resolve-against-cancel",
        "unknown",
        tx(call("resolve_job(1, 'RETRY', 'x')")),
        tx(call("cancel_job(1)")),
        tx(claim()),
    )

    # Several jobs in one transaction.
    both = (*enqueue(1), *enqueue(1, queue="r", job=2))
    yield scene(
        "two-jobs-same-order",
        both,
        tx(record(1), record(2)),
        tx(call("cancel_job(1)")) + tx(call("cancel_job(2)")),
        jobs=2,
    )
    pairs_of = (*enqueue(2), *enqueue(2, queue="r", job=2))
    yield scene(
        "two-jobs-same-order-last",
        pairs_of,
        tx(record(1), record(3)),
        tx(record(2), record(4)),
        jobs=2,
    )
    yield scene(
        "two-jobs-opposite", pairs_of, tx(record(1), record(3)), tx(record(4), record(2)), jobs=2
    )
    yield scene(
        "two-jobs-set-wise",
        pairs_of,
        tx(call("record_batches('{1,3}', '{1,1}')")),
        tx(call("record_batches('{4,2}', '{1,1}')")),
        jobs=1,  # in ascending order by itself: no deadlock is excused
    )
    yield scene("two-jobs-reap", (*pairs_of, late), tx(record(1), record(3)), reap, reap, jobs=2)
    yield scene(
        "two-jobs-claim",
        (*enqueue(1, leased=0), *enqueue(1, leased=0)),
        tx(call("claim_jobs('v', '{q}', 2)")),
        tx(claim("u")),
        jobs=2,
    )


PAUSE_QUEUE = "select pyjobs.pause_queue('q')"
EMITTED = 'select pyjobs.record_batch(1, 1, next_items => \'["x", "y"]\')'
ADD = tx(call("add_items(1, '[\"add\"]')"))
SEAL = tx(call("seal_job(1)"))
GIVE_UP = tx(call("release_batch(1, 1, 'bad')"))
CLAIM_AND_RECORD = tx(claim("v")) + tx(RECORD_GOT)


def scrambled(seed: int) -> Scenario:
    """A scene made at random: two to four sessions, each of one or two transactions."""
    dice = random.Random(f"scene {seed}")
    setup = dice.choice(list(SETUPS))
    suited = [a for a, (_, scenes) in ACTIONS.items() if setup in scenes]
    sessions = []
    for _ in range(dice.choice((2, 2, 3, 3, 3, 4))):
        ops: Ops = ()
        for _ in range(dice.choice((1, 1, 2))):
            chosen = [
                dice.choice(suited) if dice.random() < 0.8 else dice.choice(list(ACTIONS))
                for _ in range(dice.choice((1, 1, 1, 2)))
            ]
            body: Ops = ()
            for name in chosen:
                own = ACTIONS[name][0](dice.choice((1, 2)))
                body += (SAVEPOINT, *own, BACK) if dice.random() < 0.1 else own
                if name.startswith("claim") and dice.random() < 0.5:
                    body += (RECORD_GOT,)
            ops += tx(*body, end=ROLLBACK if dice.random() < 0.2 else COMMIT)
        sessions.append(ops)
    return Scenario(f"scene-{seed}", SETUPS[setup], tuple(sessions), linger=dice.random() < 0.3)


def find(name: str) -> Scenario:
    """A scenario by its name; ``name+linger`` lets advisory locks end after the commit."""
    plain, _, linger = name.partition("+")
    if plain.startswith("scene-"):
        return scrambled(int(plain.removeprefix("scene-")))
    for scenario in (*named(), *pairs()):
        if scenario.name == plain:
            return lingering(scenario) if linger else scenario
    raise KeyError(name)


def every() -> list[Scenario]:
    """All that are gone through systematically."""
    first = list(named())
    again = [lingering(s) for s in first if s.name.startswith(_LINGER)]
    return [*first, *again, *pairs()]


_LINGER = ("flow", "barrier", "last-t", "offer", "seal", "cancel")


def lingering(scenario: Scenario) -> Scenario:
    """The same with advisory locks that end a moment after their transaction."""
    return Scenario(
        f"{scenario.name}+linger",
        scenario.setup,
        scenario.sessions,
        scenario.jobs,
        scenario.needs_reap,
        linger=True,
    )
