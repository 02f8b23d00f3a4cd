"""Signals that end the program early: Ctrl-C, SIGTERM, and a terminal that goes away.

The first one is a KeyboardInterrupt in the main thread, and whatever was begun is cleaned up. Who
asks a second time does not want to wait for that either: see `urgent`.
"""

from __future__ import annotations

import signal

_heard = 0
_left_behind = False
_settled = False


def install() -> None:
    """Have the signals heard; one that the parent process had ignored (nohup) stays ignored."""
    global _settled
    _settled = False
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum == signal.SIGTERM or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _hear)


def heard() -> bool:
    """Whether the user asked to end."""
    return _heard > 0


def urgent() -> bool:
    """Whether the user asked twice: cleaning up must not wait for anybody any more."""
    return _heard > 1


def settle() -> None:
    """Have signals from now on counted only: the program is about to end, within seconds."""
    global _settled
    _settled = True


def leave_behind() -> None:
    """Note that a thread hangs in C code, and that the program is to end without it."""
    global _left_behind
    _left_behind = True


def left_behind() -> bool:
    """Whether the program is to end without what the interpreter does at its end."""
    return _left_behind


def _hear(_signum: int, _frame: object) -> None:
    global _heard
    _heard += 1
    if not _settled:
        raise KeyboardInterrupt
