"""python -m pyjobs.demo: the same as `pyjobs demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyjobs.demo import Options, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pyjobs.demo", description=__doc__)
    default = Options()
    parser.add_argument("--database-url", help="a database to run in; default: a server of its own")
    parser.add_argument("--output", type=Path, default=default.output, help="the marked picture")
    parser.add_argument("--keep", action="store_true", help="leave the server up at the end")
    parser.add_argument("--pace", type=float, default=default.pace, help="seconds for a tile")
    given = parser.parse_args()
    return run(Options(given.database_url, given.output, given.keep, pace=given.pace))


if __name__ == "__main__":
    sys.exit(main())
