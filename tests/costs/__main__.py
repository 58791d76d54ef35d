"""`python -m tests.costs`: print what each call takes; with --write keep it."""

from __future__ import annotations

import argparse

import psycopg

from pyjobs import embedded, migrate
from tests import costs

SIZE = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.costs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep them as what is expected")
    parser.add_argument("--size", type=int, default=SIZE, help="batches of each large job")
    given = parser.parse_args()
    settings = {**embedded.THROWAWAY, "autovacuum": "off"}
    with embedded.server(settings=settings) as server:
        migrate.migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as conn:
            found = costs.all_costs(conn, given.size)
    print(f"{'':32}{'pages':>8}{'records':>9}{'log':>9}{'written':>9}{'locked':>8}")
    for name, cost in found.items():
        print(f"{name:32}{cost.pages:8}{cost.records:9}{cost.log:9}{cost.written:9}{cost.locked:8}")
    if given.write:
        costs.write(found)


if __name__ == "__main__":
    main()
