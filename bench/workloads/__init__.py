"""The workloads: one file is one comparison. Its docstring is what the report says of it.

Each has GOALS, UNITS (figure to unit), SIZES (form to its own dataclass), `sides(size)`, which
returns what is measured in turn, and ROUNDS where it differs from bench.workload.ROUNDS.
"""

#: The order in which they run and are reported.
ORDER = [
    "record",
    "anatomy",
    "fused",
    "many",
    "claims",
    "waits",
    "single",
    "worker",
    "pickup",
    "enqueue",
    "bulk",
    "waiting",
    "history",
    "snapshot",
    "operators",
    "retry",
    "purge",
    "footprint",
    "capacity",
    "idle",
    "memory",
]
