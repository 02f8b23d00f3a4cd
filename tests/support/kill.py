"""Stops poclab between two steps, to see that the next command mends what is left.

poclab announces each effect on the host with `poclab.core.events.step`. This program runs poclab's
command line in its own process with a listener that ends it at the n-th step:

    python kill.py COUNT_FILE N HOW ARGUMENT...

HOW is `kill` (SIGKILL, as a power cut or the OOM killer would), `interrupt` (SIGINT, Ctrl-C),
`enospc` (the step meets a full disk) or `none` (count the steps). COUNT_FILE gets one line a
step, written before the stop. Used through `Host.stop_at` and `Host.count_steps` of
tests/support/hosts.py. The file imports nothing of the tests, so any account can run it alone.

With POCLAB_TEST_READY=1 every VM that runs counts as ready: a stand-in for the network of guests
of a few bytes, which answer nobody.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path

HOW = ("kill", "interrupt", "enospc", "none")


class Stopper:
    """A listener that counts steps and ends the program at one of them.

    Attributes:
        limit: the step to stop at, from 1.
        how: one of `HOW`.
        report: the file that gets a line a step.
    """

    def __init__(self, limit: int, how: str, report: Path) -> None:
        self.limit = limit
        self.how = how
        self.report = report
        self.count = 0
        self.lock = threading.Lock()

    def __call__(self, event: object) -> None:
        """Take note of an event.

        Raises:
            OSError: the stop is `enospc` and this is the step.
        """
        if getattr(event, "kind", "") != "step":
            return
        text = str(getattr(event, "text", "")).replace("\n", " ")
        with self.lock:
            self.count += 1
            here = self.count == self.limit
            with self.report.open("a") as report:
                report.write(f"{text}\n")
        if here and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if here and self.how == "interrupt":
            # The signal and not the exception: a worker thread must not be the one to get it.
            os.kill(os.getpid(), signal.SIGINT)
        if here and self.how == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def all_are_ready() -> None:
    """Have every VM that runs count as ready, without a look at it."""
    from poclab.guest import readiness

    vars(readiness)["glance"] = lambda _host, record, *_: True if record.ready else None
    vars(readiness)["wait"] = lambda _host, _record, _files, **_: 0.0


def main() -> None:
    """Run poclab under a stopper; see the module."""
    report, limit, how, *arguments = sys.argv[1:]
    if how not in HOW:
        sys.exit(f"kill.py: not one of {', '.join(HOW)}: {how}")
    from poclab.cli import main as program
    from poclab.core import events

    if os.environ.get("POCLAB_TEST_READY") == "1":
        all_are_ready()
    sys.argv = ["poclab", *arguments]
    with events.listening(Stopper(int(limit), how, Path(report))):
        program()


if __name__ == "__main__":
    main()
