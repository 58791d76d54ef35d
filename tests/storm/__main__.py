"""The command line of the storm."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.storm import broken, weather

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.storm.verdict import Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="tests.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="of the clients' and the killer's random numbers")
    parser.add_argument(
        "--url", help="a new database, as its superuser, on a server that is not killed"
    )
    parser.add_argument("--pooler-url", help="what the clients use instead, to the same database")
    parser.add_argument(
        "--pooler", action="store_true", help="with a PgBouncer of its own before its own server"
    )
    parser.add_argument("--folder", type=Path, help="where the ledger is kept, a new one")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument(
        "--broken",
        metavar="NAME",
        choices=sorted(broken.NAMES),
        help=f"on a broken copy, to see it turn red: {', '.join(sorted(broken.NAMES))}",
    )
    given = parser.parse_args(arguments)
    if given.pooler_url and not given.url:
        parser.error("--pooler-url needs --url, which says where the pooler leads")
    if given.pooler and given.url:
        parser.error("--pooler is for a server of the storm's own; see --pooler-url")
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    folder = given.folder or Path(tempfile.mkdtemp(prefix="pyjobs-storm-"))
    options = weather.Options(
        minutes=given.minutes,
        seed=seed,
        url=given.url,
        pooler_url=given.pooler_url,
        pooler=given.pooler,
        folder=folder,
        say=lambda text: print(text, file=sys.stderr if given.json else sys.stdout, flush=True),
    )
    if given.broken:
        options = dataclasses.replace(options, **broken.options(given.broken))
    options.say(f"a storm of {given.minutes:g} minutes, --seed {seed}, its ledger in {folder}")
    found = weather.blow(options)
    if given.json:
        print(json.dumps({"seed": seed, **dataclasses.asdict(found)}, indent=2))
    else:
        print(table(found))
    if not found.wrong and not given.folder:
        shutil.rmtree(folder)
    return 1 if found.wrong else 0


def table(found: Verdict) -> str:
    """All counts, all checks, and what is wrong."""
    width = max(map(len, [*found.counts, *found.checked]))
    lines = ["", "what happened"]
    lines += [f"  {name:<{width}} {n:>10,}" for name, n in found.counts.items()]
    lines += ["", f"{'what was checked':<{width + 2}} {'looked at':>10} {'wrong':>6}"]
    lines += [f"  {name:<{width}} {n:>10,} {bad:>6,}" for name, (n, bad) in found.checked.items()]
    lines += ["", *(f"WRONG  {text}" for text in found.wrong)]
    lines.append("red" if found.wrong else "all holds")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
