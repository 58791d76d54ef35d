"""A worker process of the demo.

    PYJOBS_DATABASE_URL=... python -m pyjobs.demo.worker NAME QUEUE

It works until it is told to end: by SIGTERM, or by the end of its standard input.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from datetime import timedelta

import pyjobs
from pyjobs.demo import handlers

# Short, so that a lease that nobody keeps alive runs out while one watches.
LEASE = timedelta(seconds=3)


def main() -> None:
    name, queue = sys.argv[1:3]
    handlers.worker_name = name
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with pyjobs.Client(os.environ["PYJOBS_DATABASE_URL"]) as client:
        worker = pyjobs.Worker(
            client, handlers.handle, [queue], name=name, lease=LEASE, poll=0.2, reap_every=1.0
        )
        threading.Thread(target=_stop_with_parent, args=(worker,), daemon=True).start()
        worker.run()


def _stop_with_parent(worker: pyjobs.Worker) -> None:
    sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main()
