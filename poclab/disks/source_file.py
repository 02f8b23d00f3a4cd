"""The file that an import reads: opened once, and known to stay as it was when it was opened."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from poclab.core import events, free_space
from poclab.core.errors import PoclabError
from poclab.core.files import data_ranges
from poclab.core.sparse import write_sparse
from poclab.core.units import KIB, MIB
from poclab.disks.formats import Window, opened

# linux/fs.h: _IOW(0x94, 9, int), see ioctl_ficlone(2).
_FICLONE = 0x40049409
_BLOCK = 64 * KIB  # what is left out of a copy when it is all zeros
_ROOM_EVERY = 64 * MIB
# A file system stamps a change with the kernel's tick, 10 ms at most (CONFIG_HZ=100); an old one
# with the second (ext4 with small inodes) or two (FAT).
_TICK, _SECONDS = 20_000_000, 2_000_000_000
_PATIENCE = 4.0  # seconds for a file to have been left alone for as long as that


@dataclass(frozen=True)
class Source:
    """An open file and the state it was opened in.

    Attributes:
        window: the file.
        state: what changes when it is written to: place, size and times.
        foreign: whether another user than root can write to it.
    """

    window: Window
    state: tuple[int, ...]
    foreign: bool

    def check_unchanged(self) -> None:
        """Check that nobody wrote to the file since it was opened.

        Raises:
            PoclabError: if somebody did.
        """
        if _state(os.fstat(self.window.descriptor)) != self.state:
            raise _changed(self.window)


@contextmanager
def opening(path: Path, name: str) -> Iterator[Source]:
    """Open a regular file that nobody writes to, or that is to be copied.

    Raises:
        PoclabError: if it cannot be read, is no regular file, or is being written to.
    """
    with opened(path, name) as window:
        found = os.fstat(window.descriptor)
        foreign = _is_foreign(found)
        # Of a foreign file a copy is used, which is whatever it was when it was copied.
        yield Source(window, _state(found) if foreign else _settled(window), foreign)


def copied(source: Source, target: Path, *, place: Path) -> None:
    """Make a copy of a file that nobody else can write to.

    The copy shares the file's blocks where the file system can do so (reflink).

    Args:
        source: the file.
        target: the file to make; removing it is the caller's.
        place: what to call its directory in messages.

    Raises:
        PoclabError: if the file cannot be read or changes meanwhile, or there is no room.
    """
    window = source.window
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if not _reflinked(window.descriptor, descriptor):
            _copy(window, descriptor, target.parent, place)
        os.ftruncate(descriptor, window.size)
    except OSError as error:
        raise PoclabError(
            f"{window.name} cannot be copied", why=f"{error.strerror}", fix=f"make room in {place}"
        ) from error
    finally:
        os.close(descriptor)
    source.check_unchanged()


def _is_foreign(found: os.stat_result) -> bool:
    # The mode's group bits are the mask of an access control list too (acl(5)).
    return found.st_uid not in _trusted() or bool(found.st_mode & 0o022)


def _trusted() -> set[int]:
    """Who may own a file that is read where it lies: root, this user, who called sudo."""
    found = {0, os.geteuid()}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal():
        found.add(int(caller))
    return found


def _state(found: os.stat_result) -> tuple[int, ...]:
    # st_mtime can be set to anything (utimensat(2)), st_ctime by nobody.
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_dev, found.st_ino, found.st_size, *times)


def _settled(window: Window) -> tuple[int, ...]:
    """The state of a file that was last changed long enough ago for the next change to show.

    Two changes within one tick have the same time, and the second one would go unnoticed.
    """
    limit = time.monotonic() + _PATIENCE
    while True:
        found = os.fstat(window.descriptor)
        age = time.time_ns() - found.st_ctime_ns
        grain = _TICK if found.st_ctime_ns % 1_000_000_000 else _SECONDS
        if not 0 <= age < grain:  # one from the future is some clock's mistake
            return _state(found)
        if time.monotonic() > limit:
            raise _changed(window)
        time.sleep((grain - age) / 1_000_000_000)


def _changed(window: Window) -> PoclabError:
    return PoclabError(
        f"{window.name} changed while it was read",
        fix="stop the VM or the download that writes to it, then import it again",
    )


def _reflinked(source: int, target: int) -> bool:
    try:
        ioctl(target, _FICLONE, source)
    except OSError:  # another file system, or one that cannot
        return False
    return True


def _copy(window: Window, target: int, directory: Path, place: Path) -> None:
    asked = 0
    for begin, end in data_ranges(window.descriptor, window.size):
        for offset in range(begin, end, MIB):
            if offset >= asked:
                free_space.check(directory, window.name, place=place)
                asked = offset + _ROOM_EVERY
            piece = window.read(offset, min(MIB, end - offset))
            write_sparse(target, piece, offset, _BLOCK)
            events.progress("copying the disk", offset + len(piece), window.size)
