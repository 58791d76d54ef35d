"""Ends an embedded server and removes its folders once the process that started it is gone.

Run as a script with the data folder and the folders to remove as arguments. It waits on its
standard input: the byte ``k`` means "let go, all is well"; an end of file without it means that
the parent died without stopping the server, by kill -9 for example. A pipe is used because it is
right on every system and in every thread, which a death signal of the kernel is not.
"""

import os
import pathlib
import shutil
import signal
import sys
import time


def _postmaster(data_dir: pathlib.Path) -> int | None:
    """The server's process id, if its lock file names one that is alive."""
    try:
        pid = int((data_dir / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    try:
        program = pathlib.Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return pid
    # The lock file of a crashed server may name a process id that now is somebody else's.
    return pid if program.startswith("postgres") else None


def _end(data_dir: pathlib.Path) -> None:
    pid = _postmaster(data_dir)
    if pid is None:
        return
    # Immediate shutdown: a throwaway server need not write a checkpoint.
    os.kill(pid, signal.SIGQUIT if hasattr(signal, "SIGQUIT") else signal.SIGTERM)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if _postmaster(data_dir) != pid:
            return
        time.sleep(0.02)
    if hasattr(signal, "SIGKILL"):
        os.kill(pid, signal.SIGKILL)


def main(data_dir: str, *folders: str) -> None:
    """Wait for the parent's word or its end."""
    if sys.stdin.buffer.read(1) == b"k":
        return
    _end(pathlib.Path(data_dir))
    for _ in range(50):
        # An initdb that was under way may still be writing: try again until nothing is left.
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if not any(pathlib.Path(folder).exists() for folder in folders):
            return
        time.sleep(0.1)
        _end(pathlib.Path(data_dir))


if __name__ == "__main__":
    main(*sys.argv[1:])
