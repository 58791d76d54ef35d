"""Measure pyjobs against the limits of the server it runs on, and against its peers.

    make bench                          the short form, under 10 minutes: docs/performance.md
    python -m bench list                the workloads, and what each is held to
    python -m bench run record fused    some of them
    python -m bench run --form long     the sizes that the goals speak of

One file of `bench/workloads/` is one comparison, one file of `bench/adapters/` one system.
"""
