"""A worker process that is going to be killed: it says where it stands, and stays there.

Run as ``python -m tests.support.doomed DSN JOB STAND``. It claims a batch, and with STAND

- claimed: has claimed in an open transaction
- leased: has claimed, and committed
- recorded: has written its own rows and recorded, in one transaction that is still open
- recording: records in an open transaction, and says so before the call, which may have to wait
- answered: records without a transaction of its own, and says so before the call
"""

from __future__ import annotations

import sys
import time

import psycopg

from tests.support.calls import Calls


def main(dsn: str, job: int, stand: str) -> None:
    conn = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    calls = Calls(conn)
    if stand == "claimed":
        calls.do("begin")
    (batch,) = calls.claim(job, worker="doomed")
    if stand in ("recorded", "recording"):
        calls.do("begin")
        calls.do("insert into public.result values (%s, 'doomed')", batch["batch_id"])
    if stand == "recorded":
        calls.record(batch)
    print(batch["batch_id"], calls.value("select pg_backend_pid()"), flush=True)
    if stand in ("recording", "answered"):
        calls.record(batch)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
