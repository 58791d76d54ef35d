"""The command line: `pyjobs VERB`. Every verb is a thin call of one SQL function.

A module for each group of verbs: `deploy`, `feed`, `work`, `look`, `steer`; `watch` is on its own.
`_app` has what every verb shares, and the exit statuses; `_output` the tables and the JSON.
"""

from __future__ import annotations

# Importing a module of verbs adds them to the program, in the order in which the help shows them.
from pyjobs.cli import deploy, feed, look, steer, watch, work
from pyjobs.cli._app import app

__all__ = ["app", "deploy", "feed", "look", "steer", "watch", "work"]
