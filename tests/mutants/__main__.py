"""The command line: kill them all, two at a time, and print a table."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from pyjobs import embedded, migrate
from tests.explorer.sessions import SETTINGS
from tests.mutants import table
from tests.mutants.catalogue import Killer, Mutant, PatchError, copy_schema, every
from tests.mutants.kill import UNIT_TESTS, Servers, Verdict, kill, run_tests
from tests.support.cluster import _memory

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where one survives, a patch does not apply, or a killer fails on what ships."""
    parser = argparse.ArgumentParser(prog="tests.mutants")
    parser.add_argument("--only", default="", help="those whose name matches this expression")
    parser.add_argument("--at-once", type=int, default=2, help="how many at a time")
    parser.add_argument(
        "--all-tests", action="store_true", help="ask all everyday tests, and write it down"
    )
    parser.add_argument(
        "--refresh", action="store_true", help="make those patches anew that no longer apply"
    )
    parser.add_argument("--table", action="store_true", help="write docs/mutants.md and no more")
    given = parser.parse_args(arguments)
    if given.table:
        table.PAGE.write_text(table.page(every()), "utf-8")
        return 0
    chosen = [m for m in every() if re.search(given.only, m.name)]
    if not chosen:
        print(f"no mutant's name matches {given.only!r}")
        return 1
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Readable for a server that runs as another user.
        folder.chmod(0o755)
        if given.refresh:
            return _refresh(chosen, folder)
        if given.all_tests:
            return _ask_all_tests(chosen, folder)
        plain = stack.enter_context(_server({}))
        exploring = stack.enter_context(_server(SETTINGS))
        for url in (plain, exploring):
            with psycopg.connect(url, autocommit=True) as conn:
                # Shared by all databases: made once, before two might make them at once.
                conn.execute(migrate.roles_sql().encode())
        return _kill_all(chosen, folder, Servers(plain, exploring), given.at_once)


@contextlib.contextmanager
def _server(settings: dict[str, str]):
    with embedded.server(settings={**embedded.THROWAWAY, **settings}, temp_dir=_memory()) as server:
        yield server.url()


def _kill_all(chosen: list[Mutant], folder: Path, servers: Servers, at_once: int) -> int:
    began = time.monotonic()

    def one(mutant: Mutant) -> Verdict:
        label = f"{os.getpid()}_{mutant.name[:3]}"
        try:
            root = mutant.apply(folder / mutant.name)
            verdict = kill(mutant.killer, root, servers, label)
        except PatchError as error:
            verdict = Verdict(False, str(error), trouble=True)
        _print(mutant.name, verdict, mutant.killer)
        return verdict

    with ThreadPoolExecutor(at_once) as pool:
        verdicts = list(pool.map(one, chosen))
        alive = [m.name for m, v in zip(chosen, verdicts, strict=True) if not v.killed]

        # The same killers on what ships.
        tests = sorted({m.killer.test for m in chosen if m.killer.test})
        explored: dict[Killer, int] = {}
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            if mutant.killer.scenario:
                # As many schedules as it took, and some more.
                wanted = max(explored.get(mutant.killer, 0), verdict.schedules + 20)
                explored[mutant.killer] = wanted
        shipped = []
        for number, part in enumerate(p for p in (tests[0::2], tests[1::2]) if p):
            root = copy_schema(folder / f"shipped-{number}")
            label = f"{os.getpid()}_s{number}"
            shipped.append(
                (f"{len(part)} tests", pool.submit(run_tests, part, root, servers.tests, label))
            )
        for number, (killer, limit) in enumerate(explored.items()):
            root = copy_schema(folder / f"shipped-e{number}")
            bounded = Killer("", killer.scenario, killer.bound, limit)
            label = f"{os.getpid()}_e{number}"
            shipped.append((str(killer), pool.submit(kill, bounded, root, servers, label)))
        wrong = []
        for name, future in shipped:
            verdict = future.result()
            if verdict.killed or verdict.trouble:
                wrong.append(name)
                print(f"on what ships FAILS: {name} {verdict.test} {verdict.why}")
    explored_on = sum(f.result().schedules for _, f in shipped)
    print(
        f"{len(chosen)} mutants, {len(chosen) - len(alive)} killed; on what ships {len(tests)} "
        f"tests and {explored_on} schedules of {len(explored)} scenarios, "
        f"{len(wrong)} failures; {time.monotonic() - began:.0f} s"
    )
    if alive:
        print("not killed: " + ", ".join(alive))
    return 1 if alive or wrong else 0


def _print(name: str, verdict: Verdict, killer: Killer) -> None:
    print(f"{verdict!s:9} {verdict.seconds:4.0f} s  {name:44} {killer}")
    if verdict.why:
        print(f"{'':18}{verdict.why}")
    sys.stdout.flush()


def _refresh(chosen: list[Mutant], folder: Path) -> int:
    lost = []
    for mutant in chosen:
        try:
            mutant.apply(folder / mutant.name)
        except PatchError:
            made = mutant.refresh(folder / f"{mutant.name}-anew")
            print(f"{'made anew' if made else 'LOST':9}  {mutant.name}")
            if not made:
                lost.append(mutant.name)
    return 1 if lost else 0


def _ask_all_tests(chosen: list[Mutant], folder: Path) -> int:
    for mutant in chosen:
        if mutant.killer.test.partition("::")[0] in UNIT_TESTS:
            mutant.say("killed")
            continue
        root = mutant.apply(folder / mutant.name)
        label = f"{os.getpid()}_{mutant.name[:3]}"
        verdict = run_tests(
            UNIT_TESTS, root, None, label, "-x", "-n", "2", "--dist", "worksteal", patience=1200
        )
        print(f"{verdict!s:9} {verdict.seconds:4.0f} s  {mutant.name:44} {verdict.test}")
        if verdict.why:
            print(f"{'':18}{verdict.why}", flush=True)
        if not verdict.trouble:
            mutant.say("killed" if verdict.killed else "survives")
    return 0


if __name__ == "__main__":
    sys.exit(main())
