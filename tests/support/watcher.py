"""A process that outlives the tests and takes away what they leave when they are killed.

It is told of each account's directories (`tests.support.accounts.place`). The end of its standard
input is the end of the tests, however that came: then it ends the processes of the directories that
are left and removes them. Processes are known by a path of their own in their environment, so
nobody else's are touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

_lock = threading.Lock()
_watcher: subprocess.Popen[str] | None = None
_owner = 0  # the process that started it: a forked child needs one of its own


def watch(top: Path) -> None:
    """Have a directory and its processes taken away when this process ends."""
    _tell(f"+{top}")


def forget(top: Path) -> None:
    """Leave a directory alone, which was taken away in order."""
    _tell(f"-{top}")


def _tell(line: str) -> None:
    global _watcher, _owner
    with _lock:
        if _watcher is None or _owner != os.getpid():
            # A session of its own: a signal for the group of the tests does not reach it.
            _watcher = subprocess.Popen(
                [sys.executable, "-m", "tests.support.watcher"],
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            _owner = os.getpid()
        assert _watcher.stdin
        with suppress(BrokenPipeError):
            print(line, file=_watcher.stdin, flush=True)


def main() -> None:
    """Wait for the end of the tests; see the module."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    left: dict[str, None] = {}
    for line in sys.stdin:
        top = line[1:].rstrip("\n")
        if line.startswith("+"):
            left[top] = None
        else:
            left.pop(top, None)
    if left:
        from tests.support import accounts

        for top in map(Path, left):
            accounts.take_away(top)


if __name__ == "__main__":
    main()
