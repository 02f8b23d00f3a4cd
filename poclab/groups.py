"""Process groups, and ending them whole."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Protocol

from poclab import interrupts


class Process(Protocol):
    """What `subprocess.Popen` has."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Look whether it ended."""

    def send_signal(self, sig: int, /) -> None:
        """Send it a signal."""


def end_group(process: Process, patience: float = 10) -> None:
    """End every process of a group, also those that outlive their leader.

    An interruption meanwhile does not spare them: it ends the waiting.

    Args:
        process: the leader; when its group is our own, it is ended without others.
        patience: seconds for SIGTERM to work before SIGKILL is sent, and for that.
    """
    group = _group(process)
    try:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            _send(process, group, signum)
            limit = time.monotonic() + patience
            while time.monotonic() < limit:
                process.poll()
                if not _lives(process, group):
                    return
                if interrupts.urgent():
                    break
                time.sleep(0.02)
    except BaseException:
        _send(process, group, signal.SIGKILL)
        raise


def _group(process: Process) -> int | None:
    """The process's group, or None when that is our own."""
    with suppress(ProcessLookupError):
        return None if os.getpgid(process.pid) == os.getpgid(0) else process.pid
    return process.pid  # it ended, and others of its group may not have


def _send(process: Process, group: int | None, signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        process.send_signal(signum) if group is None else os.killpg(group, signum)


def _lives(process: Process, group: int | None) -> bool:
    if group is None:
        return process.returncode is None
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # members run as another user (sudo)
        return True
    return True
