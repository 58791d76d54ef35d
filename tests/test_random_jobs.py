"""Random sessions on random jobs: all public calls, savepoints, roll backs and killed sessions.

Some twelve seconds each in an everyday run. For more of it: ``PYJOBS_EXPLORE=600``, in seconds;
``PYJOBS_SEED`` repeats the random numbers of a run, though not how its threads met.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.support.storm import Storm

SECONDS = float(os.environ.get("PYJOBS_EXPLORE", "12"))
SEED = int(os.environ.get("PYJOBS_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.explore
@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize("several", [False, True], ids=["one job", "several jobs"])
def test_whatever_meets_nothing_sticks_drifts_or_counts_twice(database, several):
    """With one job a transaction there is no deadlock either."""
    storm = Storm(database.dsn, database.admin_dsn, SEED, several=several)
    storm.blow(SECONDS)
    told = f"PYJOBS_SEED={SEED}, {dict(storm.done)}"
    assert storm.trouble == [], told
    assert storm.at_rest() == [], told
    assert storm.work_to_the_end() == [], told
    assert storm.at_rest() == [], told
    print(told)
    # It did happen.
    for what in ("recorded", "claimed", "produced", "observed", "killed", "cancel", "retry"):
        assert storm.done[what] > 0, told
