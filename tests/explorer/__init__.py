"""Drives real sessions through the real functions, and owns the schedule.

    python -m tests.explorer run            every schedule up to a bound, then random ones
    python -m tests.explorer replay LINE    one schedule, as a failure prints it
    python -m tests.explorer list           the scenarios
    python -m tests.explorer tally          what was explored so far, added up

How it works: ``instrument`` makes a copy of the functions with a yield before every statement,
``sessions`` lets one session go at a time, ``search`` chooses the schedules, ``scenarios`` says
who does what (``acts`` and ``scenes`` in detail), ``rules``, ``effects`` and ``model`` judge what
came of it.
"""
