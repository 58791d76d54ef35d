"""The scenes that matter most: three sessions, stages, runs, offers, several jobs.

``named`` gives them all.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.explorer.acts import (
    BACK,
    FUSED,
    RECORD_GOT,
    ROLLBACK,
    SAVEPOINT,
    SETUPS,
    Ops,
    call,
    claim,
    enqueue,
    record,
    two_jobs,
    tx,
)
from tests.explorer.run import Op, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _again(b: int) -> Ops:
    return tx(record(b), end=ROLLBACK) + tx(record(b))


def _undone(b: int) -> Ops:
    """A record in a savepoint that is rolled back, and then again."""
    return tx(SAVEPOINT, record(b), BACK, record(b))


# How one of the last comes to its end.
_ENDS: dict[str, Callable[[int], Ops]] = {
    "commit": lambda b: tx(record(b)),
    "again": _again,
    "never": lambda b: tx(record(b), end=ROLLBACK),
    "undone": _undone,
    "setwise": lambda b: tx(call(f"record_batches('{{{b}}}', '{{1}}')")),
    "fused": lambda b: tx(call(f"record_and_claim({b}, 1, 'v{b}')", "got")),
}


def orders() -> Iterator[Scenario]:
    """The last two and the last three, each with every way to end, committed or rolled back.

    In every order: the schedules of one scene have them all.
    """
    for count, ways in ((2, list(_ENDS)), (3, ["commit", "again", "never", "undone"])):
        for ends in itertools.combinations_with_replacement(ways, count):
            yield Scenario(
                f"last-{count}-{'-'.join(ends)}",
                enqueue(count),
                tuple(_ENDS[end](n) for n, end in enumerate(ends, 1)),
            )


def _stops() -> Iterator[tuple[str, str, Ops]]:
    """What happens to a job on the way: a name, a set-up with batch 1 leased, what is called."""
    for name, setup, text in (
        ("cancel", "mix", "cancel_job(1)"),
        ("cancel-now", "mix", "cancel_job(1, null, '0')"),
        ("reap", "expired", "reap()"),
        ("reap-leases", "cancelling", "reap_leases()"),
        ("finalize", "mix", "finalize_job(1)"),
        ("force", "mix", "finalize_job(1, 'FAILURE')"),
        ("retry", "final", "retry_job(1)"),
        ("retry-failed", "final", "retry_job(1, true)"),
        ("quarantine", "mix", "quarantine_job(1, 'odd')"),
        ("resolve", "unknown", "resolve_job(1, 'RETRY', 'fine')"),
        ("pause", "mix", "pause_job(1)"),
        ("resume", "paused", "resume_job(1)"),
        ("pause-queue", "mix", "pause_queue('q')"),
        ("resume-queue", "queue", "resume_queue('q')"),
        ("priority", "mix", "set_priority(1, 5)"),
        ("seal", "unsealed", "seal_job(1)"),
        ("add", "unsealed", "add_items(1, '[\"add\"]')"),
        ("emit", "flow", "record_batch(2, 1, next_items => '[\"emit\"]')"),
        ("emit-barrier", "barrier", "record_batch(2, 1, next_items => '[\"emit\"]')"),
        ("release", "two", "release_batch(2, 1)"),
        ("give-up", "once", "release_batch(2, 1, 'bad')"),
        ("extend", "two", "extend_lease(2, 1)"),
        ("extend-expired", "expired", "extend_lease(2, 1)"),
        ("release-job", "held", "release_job(1)"),
        ("purge", "final", "purge_jobs('0')"),
    ):
        yield name, setup, (call(text),)


def triples() -> Iterator[Scenario]:
    """Each of those against two who record and claim, alone and fused, committed or not."""
    fused = tx(call("record_and_claim(1, 1, 'v')", "got")) + tx(FUSED)
    setwise = tx(call("record_batches('{1}', '{1}')"))
    many = tx(call("claim_jobs('v', '{q}', 2)", "got")) + tx(RECORD_GOT)
    undone_claim = tx(SAVEPOINT, claim("u"), BACK) + tx(claim("u"), end=ROLLBACK)
    work = {
        "record-claim": (tx(record(1)), CLAIM_AND_RECORD),
        "claim-claim": (CLAIM_AND_RECORD, CLAIM_AND_RECORD),
        "fused": (fused, tx(claim("u"))),
        "setwise": (setwise, many),
        "rolled-back": (_again(1), undone_claim),
    }
    for name, setup, ops in _stops():
        for kind, (first, second) in work.items():
            yield Scenario(f"{name}-with-{kind}", SETUPS[setup], (first, second, tx(*ops)))
        yield Scenario(
            f"{name}-rolled-back-with-record-claim",
            SETUPS[setup],
            (tx(record(1)), CLAIM_AND_RECORD, tx(*ops, end=ROLLBACK) + tx(*ops)),
        )


def several_jobs() -> Iterator[Scenario]:
    """Several batches of several jobs in one transaction, in opposite orders."""
    pair = two_jobs(2)
    waiting = two_jobs(2, leased=False)
    opened = two_jobs(1, seal=False)

    def claims(job: int, worker: str) -> Op:
        return call(f"claim_next_batch({job}, '{worker}', 2)", f"got{job}")

    def of(job: int, text: str) -> Op:
        return call(text.replace("JOB", str(job)))

    got = {n: call(f"record_batch({{got{n}.batch_id}}, {{got{n}.lease_epoch}})") for n in (1, 2)}
    for name, setup, one, two in (
        ("record", pair, (record(1), record(3)), (record(4), record(2))),
        ("record-all", pair, (record(1), record(2), record(3)), (record(4),)),
        ("record-again", pair, (record(1), record(3)), (record(3), record(1))),
        ("claim", waiting, (claims(1, "v"), claims(2, "v")), (claims(2, "u"), claims(1, "u"))),
        (
            "claim-record",
            waiting,
            (claims(1, "v"), claims(2, "v"), got[2], got[1]),
            (claims(2, "u"), claims(1, "u"), got[1], got[2]),
        ),
        *(
            (
                what,
                pair,
                (record(1), record(3)),
                (of(2, text), of(1, text)),
            )
            for what, text in (
                ("cancel", "cancel_job(JOB)"),
                ("cancel-now", "cancel_job(JOB, null, '0')"),
                ("force", "finalize_job(JOB, 'FAILURE')"),
                ("quarantine", "quarantine_job(JOB, 'odd')"),
                ("pause", "pause_job(JOB)"),
            )
        ),
        (
            "cancel-cancel",
            pair,
            (of(1, "cancel_job(JOB)"), of(2, "cancel_job(JOB)")),
            (of(2, "cancel_job(JOB)"), of(1, "cancel_job(JOB)")),
        ),
        (
            "seal",
            opened,
            (of(1, "seal_job(JOB)"), of(2, "seal_job(JOB)")),
            (of(2, "seal_job(JOB)"), of(1, "seal_job(JOB)")),
        ),
        (
            "add-seal",
            opened,
            (of(1, "add_items(JOB, '[\"add\"]')"), of(2, "seal_job(JOB)")),
            (of(2, "add_items(JOB, '[\"add\"]')"), of(1, "seal_job(JOB)")),
        ),
        (
            "record-seal",
            opened,
            (record(1), of(2, "seal_job(JOB)")),
            (record(2), of(1, "seal_job(JOB)")),
        ),
    ):
        yield Scenario(f"jobs-opposite-{name}", setup, (tx(*one), tx(*two)), 2)
        yield Scenario(
            f"jobs-opposite-{name}-rolled-back",
            setup,
            (tx(*one, end=ROLLBACK) + tx(*one), tx(SAVEPOINT, *two, BACK) + tx(*two)),
            2,
        )


def by_sets() -> Iterator[Scenario]:
    """Two jobs of one batch each, claimed or recorded together, and what meets it."""
    expired = "update pyjobs_internal.test_clock set ahead = '2 minutes'"
    # A claim may draw a number: first all are made.
    waiting = (*enqueue(1, leased=0), *enqueue(1, leased=0))
    leased = (*waiting, *(f"select * from pyjobs.claim_next_batch({n}, 'w')" for n in (1, 2)))
    # Two with more than one batch as well, one of each leased: what is recorded one by one.
    mixed = (
        *(statement for items in (1, 2, 1) for statement in enqueue(items, leased=0)),
        *(f"select * from pyjobs.claim_next_batch({n}, 'w')" for n in (1, 2, 3)),
    )
    both = call("record_batches('{1,2}', '{1,1}')")
    take = call("claim_jobs('v', '{q}', 2)", "got")

    stops = (
        ("cancel", "cancel_job(1)"),
        ("cancel-now", "cancel_job(2, null, '0')"),
        ("finalize", "finalize_job(1)"),
        ("force", "finalize_job(2, 'FAILURE')"),
        ("quarantine", "quarantine_job(1, 'odd')"),
        ("pause", "pause_job(2)"),
        ("pause-queue", "pause_queue('q')"),
        ("priority", "set_priority(1, 5)"),
        ("purge", "purge_jobs('0')"),
        ("retry", "retry_job(1)"),
    )
    holders = (
        ("reap", "reap()"),
        ("release", "release_batch(1, 1)"),
        ("give-up", "release_batch(2, 1, 'bad')"),
        ("extend", "extend_lease(1, 1)"),
        ("record", "record_batch(2, 1)"),
        ("again", "record_batches('{2,1}', '{1,1}')"),
        ("stale", "record_batches('{1,2}', '{7,1}')"),
        ("fused", "record_and_claim(1, 1, 'v')"),
    )
    for name, text in (*stops, *holders):
        setup = (*leased, expired) if name == "reap" else leased
        other = call(text)
        yield Scenario(f"set-{name}", setup, (tx(both), tx(other)))
        yield Scenario(f"set-{name}-undone", setup, (_undone_(both), _undone_(other)))
        yield Scenario(f"set-{name}-and-again", setup, (tx(both), tx(other), tx(both)))
    claims = (
        *stops[:8],
        ("claim", "claim_next_job('u', '{q}')"),
        ("claim-here", "claim_next_batch(2, 'u')"),
        ("again", "claim_jobs('u', '{q}', 2)"),
        ("enqueue", "enqueue_job('q', '[3]')"),
    )
    for name, text in claims:
        other = call(text)
        yield Scenario(f"take-{name}", waiting, (tx(take), tx(other)))
        yield Scenario(f"take-{name}-undone", waiting, (_undone_(take), _undone_(other)))
        yield Scenario(
            f"take-{name}-record", waiting, (tx(take) + tx(RECORD_GOT), tx(other), tx(claim("x")))
        )
    # The end of the one and a claim of the other in one transaction.
    going_on = call("record_and_claim(1, 1, 'v', queues => '{q}')", "got")
    both_out = (*waiting, "select * from pyjobs.claim_next_batch(1, 'w')")
    for name, text in claims:
        other = call(text)
        yield Scenario(f"on-{name}", both_out, (tx(going_on) + tx(RECORD_GOT), tx(other)))
        yield Scenario(f"on-{name}-undone", both_out, (_undone_(going_on), _undone_(other)))
    both_on = (tx(going_on), tx(call("record_and_claim(2, 1, 'u', queues => '{q}')", "got")))
    yield Scenario("on-both", leased, both_on)
    yield Scenario("on-both-beside-one", (*leased, *enqueue(1, leased=0)), both_on)
    for name, text in (
        ("add", "add_items(1, '[\"add\"]')"),
        ("seal", "seal_job(1)"),
        ("release", "release_batch(2, 1)"),
    ):
        setup = (
            *enqueue(1, leased=0, seal="false"),
            *waiting,
            *(f"select * from pyjobs.claim_next_batch({n}, 'w')" for n in (1, 2)),
        )
        yield Scenario(f"set-unsealed-{name}", setup, (tx(both), tx(call(text)), tx(take)))
    yield Scenario(
        "set-mixed",
        mixed,
        (tx(call("record_batches('{4,2,1}', '{1,1,1}')")), tx(claim("u")) + tx(RECORD_GOT)),
    )
    yield Scenario(
        "set-mixed-crosswise",
        mixed,
        (
            tx(call("record_batches('{4,2}', '{1,1}')")),
            tx(call("record_batches('{2,4,1}', '{1,1,1}')")),
        ),
    )


def _undone_(op: Op) -> Ops:
    return tx(SAVEPOINT, op, BACK, op)


def closing_what_is_kept() -> Iterator[Scenario]:
    """Who hands over keeps a batch, and may then close that batch himself."""
    both = (
        *enqueue(2, leased=1, stages="'{a,b}'"),
        EMITTED,
        "select * from pyjobs.claim_next_batch(1, 'w', 9)",
    )
    wide = tuple(s.replace('"y"', '"y", "z"') for s in both)
    unsealed = enqueue(2, seal="false")

    def setwise(*batches: int) -> Op:
        ids = ",".join(map(str, batches))
        return call(f"record_batches('{{{ids}}}', '{{{','.join('1' for _ in batches)}}}')")

    for name, setup, one, *others in (
        ("stage-high", both, (record(2), record(5)), (record(4),)),
        ("stage-low", both, (record(2), record(4)), (record(5),)),
        ("stage-setwise-high", both, (setwise(2, 5),), (record(4),)),
        ("stage-setwise-low", both, (setwise(2, 4),), (record(5),)),
        ("stage-all", both, (record(2), record(4), record(5)), (record(5),)),
        ("stage-extend", both, (record(2), call("extend_lease(5, 1)")), (record(4),), (record(5),)),
        ("stage-release", both, (record(2), call("release_batch(5, 1, 'bad')")), (record(4),)),
        ("stage-undone", both, (record(2), SAVEPOINT, record(5), BACK), (record(4),), (record(5),)),
        ("stage-three", both, (record(2), record(5)), (record(4),), (call("extend_lease(4, 1)"),)),
        ("stage-crosswise", wide, (record(2), record(6)), (record(4), record(5))),
        ("stage-crosswise-low", wide, (record(2), record(4)), (record(6), record(5))),
        ("stage-wide", wide, (record(2), record(6), record(5)), (record(4),)),
        ("seal-first", unsealed, (SEAL[0], record(1)), (record(2),)),
        ("seal-second", unsealed, (SEAL[0], record(2)), (record(1),)),
        ("seal-record-before", unsealed, (record(1), SEAL[0], record(2)), (record(2),)),
        ("cancel-first", "two", (call("cancel_job(1)"), record(1)), (record(2),)),
        ("cancel-second", "two", (call("cancel_job(1)"), record(2)), (record(1),)),
        (
            "cancel-release",
            "two",
            (call("cancel_job(1)"), call("release_batch(1, 1)")),
            (record(2),),
        ),
        (
            "resolve-claim",
            "unknown",
            (call("resolve_job(1, 'RETRY', 'fine')"), claim("v", 1), RECORD_GOT),
            (claim("u", 1), RECORD_GOT),
        ),
        ("retry-claim", "final", (call("retry_job(1)"), claim("v", 1), RECORD_GOT), (claim("u"),)),
        ("release-claim", "held", (call("release_job(1)"), claim("v"), RECORD_GOT), (claim("u"),)),
    ):
        yield Scenario(
            f"kept-{name}",
            SETUPS[setup] if isinstance(setup, str) else setup,
            tuple(tx(*ops) for ops in (one, *others)),
        )


def named() -> Iterator[Scenario]:
    """The scenes that matter most."""
    yield from _named()
    yield from closing_what_is_kept()
    yield from orders()
    yield from triples()
    yield from several_jobs()
    yield from by_sets()


def _named() -> Iterator[Scenario]:
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
                [tx(record(2)), tx(record(4)), tx(record(5))]
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
    both = two_jobs(1)
    yield scene(
        "two-jobs-same-order",
        both,
        tx(record(1), record(2)),
        tx(call("cancel_job(1)")) + tx(call("cancel_job(2)")),
        jobs=2,
    )
    pairs_of = two_jobs(2)
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

    # Several calls on one job in one transaction, against one who seals or adds.
    one = enqueue(1, seal="false")
    late_add = call("add_items(1, '[\"add\"]')")
    yield scene("record-and-add-against-seal", one, tx(record(1), late_add), SEAL)
    yield scene("record-and-seal-against-seal", one, tx(record(1), SEAL[0]), SEAL)
    yield scene("record-and-seal-twice", two, tx(record(1), SEAL[0]), tx(record(2), SEAL[0]))
    yield scene(
        "record-and-seal-unsealed-twice",
        "unsealed",
        tx(record(1), SEAL[0]),
        tx(record(2), SEAL[0]),
    )
    yield scene("add-and-seal-against-seal", "open", tx(late_add, SEAL[0]), SEAL)
    yield scene("add-and-seal-twice", "open", tx(late_add, SEAL[0]), tx(late_add, SEAL[0]))
    yield scene("add-and-record-against-seal", one, tx(late_add, record(1)), SEAL)
    yield scene("add-and-cancel-against-seal", "open", tx(late_add, call("cancel_job(1)")), SEAL)
    yield scene(
        "add-and-force-against-add", "open", tx(late_add, call("finalize_job(1, 'FAILURE')")), ADD
    )
    yield scene(
        "claim-and-cancel-against-claim",
        "pending",
        tx(claim(), call("cancel_job(1)")),
        CLAIM_AND_RECORD,
    )
    yield scene(
        "claim-and-seal-against-seal",
        enqueue(1, leased=0, seal="false"),
        tx(claim(), SEAL[0]),
        SEAL,
    )
    yield scene("extend-and-add-against-seal", one, tx(call("extend_lease(1, 1)"), late_add), SEAL)
    yield scene(
        "extend-and-record-each",
        two,
        tx(call("extend_lease(1, 1)"), record(1)),
        tx(call("extend_lease(2, 1)"), record(2)),
    )
    yield scene(
        "pause-and-record",
        two,
        tx(call("pause_job(1)"), record(2)),
        tx(record(1), call("release_job(1)")),
    )
    yield scene(
        "record-and-pause-each",
        two,
        tx(record(1), call("pause_job(1)")),
        tx(record(2), call("pause_job(1)")),
    )
    yield scene(
        "record-two-each-crosswise", enqueue(4), tx(record(1), record(2)), tx(record(4), record(3))
    )
    yield scene(
        "same-batch-among-several",
        "cancelling",
        tx(call("release_batch(1, 1, 'bad')")),
        tx(call("record_and_claim(1, 1, 'v1')", "got")),
        tx(call("release_batch(2, 1)"), call("release_batch(1, 1, 'bad')")),
    )
    yield scene("record-in-turns", enqueue(4), tx(record(1), record(3)), tx(record(2), record(4)))


PAUSE_QUEUE = "select pyjobs.pause_queue('q')"
EMITTED = 'select pyjobs.record_batch(1, 1, next_items => \'["x", "y"]\')'
ADD = tx(call("add_items(1, '[\"add\"]')"))
SEAL = tx(call("seal_job(1)"))
GIVE_UP = tx(call("release_batch(1, 1, 'bad')"))
CLAIM_AND_RECORD = tx(claim("v")) + tx(RECORD_GOT)
