"""What is done to files of any kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poclab.beside import repeating

# Seconds between two rounds of `writing_out`: with 0.01 a copy of 2 GiB is on the disk as soon as
# it is made (0.95 s; 1.5 s when it is synced afterwards).
_ROUND = 0.01


_users_umask = 0o077


def write_privately() -> None:
    """Make all that this process and its children write this user's only: disks, keys, logs."""
    global _users_umask
    _users_umask = os.umask(0o077)


def share_as_usual(path: Path) -> None:
    """Give a file that the user named the mode that any program would have given it."""
    with suppress(PermissionError):  # root made it
        path.chmod(0o666 & ~_users_umask)


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk (fsync(2)).

    Raises:
        OSError: it cannot be written.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def writing_out(path: Path) -> Iterator[None]:
    """Have the disk write a file that another program makes meanwhile, from its first bytes on.

    The kernel would begin seconds later, or when memory is full; a `sync` at the end finds little
    left to do. What goes wrong here is left for that to tell.
    """

    def write_out() -> None:
        with suppress(OSError):  # one that is not there yet, too
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    with repeating(write_out, _ROUND):
        yield
