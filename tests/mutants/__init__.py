"""Small breaks of the functions that ship, each with the check that must notice it.

A check that nothing could fail proves nothing. Each patch in this folder breaks one thing in
``sql/`` (or ``migrations/``) and names its killer: a test, or a scenario of the explorer. The
runner applies the patch to a copy, deploys that to a database of its own, and asks for a failure;
on what ships the same killer must pass.

    python -m tests.mutants                   all of them (``make mutants``)
    python -m tests.mutants --only ender      those whose name matches
    python -m tests.mutants --all-tests       which of them the everyday tests alone would notice
    python -m tests.mutants --refresh         make anew the patches whose surroundings changed
    python -m tests.mutants --table           write docs/mutants.md from the patches

Where a change of a function keeps a patch from applying, make it anew (by ``--refresh``, or by
hand: edit, ``git diff``, put the diff below the old head), and see that it is killed still.

A patch begins with a comment: what is broken, then ``Matters:`` why, ``Killed-by:`` the killer,
``Unit-tests:`` whether the everyday tests notice it (written by ``--all-tests``).
"""
