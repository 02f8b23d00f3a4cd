"""How a test run ends when somebody ends it: in order, so that no guest or daemon stays.

Hooks for pytest, in the process that is started and in each worker of pytest-xdist. Ctrl-C works
in a background job too, whose shell had it ignored. SIGTERM (`timeout`, a CI system) interrupts the
tests, which tears down fixtures. What SIGKILL leaves is `tests.support.watcher`'s to end.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any

import pytest

_workers: set[int] = set()  # process IDs
_ending = False


def pytest_configure() -> None:
    """Set what the signals do, before the first test starts a process."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminate)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:
    """Note a worker of pytest-xdist."""
    _workers.add(int(node.gateway._io.popen.pid))  # execnet tells it in no other way


def _terminate(_signum: int, _frame: object) -> None:
    """Interrupt the tests, once: `timeout` signals a process and then its whole group."""
    global _ending
    if _ending:
        return
    _ending = True
    for pid in _workers:  # xdist would end them with a SIGKILL ten seconds later
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    raise KeyboardInterrupt
