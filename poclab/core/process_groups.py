"""Process groups, and ending them whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from poclab.core import events, hints, interrupts

_AT_END = 1.0  # seconds for what threads run to end by itself, when this program does


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
    end_groups([process], patience)


def _nobody(_signum: int, _target: int) -> bool:
    return False


as_root: Callable[[int, int], bool] = _nobody
"""Sends a signal to another account's process, or group when negative; says whether it could.

`run` puts sudo in, which it may start and this module may not.
"""

_living: WeakSet[Process] = WeakSet()  # those whose end was not seen yet
_ending = False
_guard = threading.Lock()


def keep(process: Process) -> None:
    """Have a group end with this program, as `end_all` does; at once when that was called."""
    with _guard:
        _living.add(process)
        ending = _ending
    if ending:
        end_group(process, _AT_END)


def end_all() -> None:
    """End what still runs, and what is started from now on: this program is about to end.

    An interruption reaches the main thread only, and a terminal's Ctrl-C reaches no other group:
    what other threads run would live on.
    """
    global _ending
    with _guard:
        _ending = True
        found = [process for process in _living if process.returncode is None]
    end_groups(found, _AT_END)


def end_groups(processes: Iterable[Process], patience: float) -> None:
    """End several groups at once; see `end_group`."""
    left = [(process, _group(process)) for process in processes]
    try:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            # What runs as another account (sudo and what it started) may be out of reach: to wait
            # for that would be in vain.
            denied = [item for item in left if not _send(*item, signum)]
            for item in denied:
                _give_up(*item)
            left = [item for item in left if item not in denied]
            limit = time.monotonic() + patience
            while left and time.monotonic() < limit:
                for process, _ in left:
                    process.poll()
                left = [item for item in left if _lives(*item)]
                if not left or interrupts.urgent():
                    break
                time.sleep(0.02)
    except BaseException:
        for process, group in left:
            _send(process, group, signal.SIGKILL)
        raise


def _group(process: Process) -> int | None:
    """The process's group, or None when that is our own."""
    with suppress(ProcessLookupError):
        return None if os.getpgid(process.pid) == os.getpgid(0) else process.pid
    return process.pid  # it ended, and others of its group may not have


def _send(process: Process, group: int | None, signum: int) -> bool:
    """Send a signal; say whether somebody got it, or nobody was left to get it."""
    try:
        process.send_signal(signum) if group is None else os.killpg(group, signum)
    except ProcessLookupError:
        return True
    except PermissionError:  # all that is left of it runs as another account
        if process.returncode is not None:
            return True  # it was reaped: the number may be anybody's by now
        return as_root(signum, process.pid if group is None else -group)
    return True


def _give_up(process: Process, group: int | None) -> None:
    target = str(process.pid if group is None else -group)
    again = hints.command("sudo", "kill", "--", target)
    events.warning(f"process {process.pid} runs as another user and goes on; to end it: {again}")


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
