"""worker.py: a pyjobs worker in Python.

    pip install 'pyjobs[binary]'
    PYJOBS_DATABASE_URL=... pyjobs worker worker:answer --queue default

Writes the SHA-256 of each item into example.answer (examples/schema.sql). Everything else, leases,
commits, retries and the drain on SIGTERM, is the worker's business.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import pyjobs

if TYPE_CHECKING:
    import psycopg

DELAY = float(os.environ.get("EXAMPLE_ITEM_SECONDS", "0"))  # to see leases and drains at work


def answer(batch: pyjobs.Batch, conn: psycopg.Connection[Any]) -> None:
    """Work one batch. First compute, then write: `conn` opens its transaction when it is used."""
    rows = []
    for index, item in enumerate(batch.items):
        if batch.cancelled:
            raise RuntimeError("nobody wants the result any more")
        if not isinstance(item, str):
            batch.fail(index, "not a text")
            continue
        time.sleep(DELAY)
        digest = hashlib.sha256(item.encode()).hexdigest()
        rows.append((batch.batch_id, index, batch.job_id, item, digest))
    with conn.cursor() as cursor:
        cursor.executemany(
            "insert into example.answer (batch_id, index, job_id, item, answer)"
            " values (%s, %s, %s, %s, %s)",
            rows,
        )
    batch.count(answers=len(rows))


def main() -> None:
    """Do by hand what `pyjobs worker worker:answer` does."""
    with pyjobs.Client(os.environ["PYJOBS_DATABASE_URL"]) as client:
        pyjobs.Worker(client, answer, queues=["default"]).run()


if __name__ == "__main__":
    main()
