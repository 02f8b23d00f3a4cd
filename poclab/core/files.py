"""What is done to files of any kind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from poclab.core.background import repeating
from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.core.units import MIB

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


def write_configuration(path: Path, data: bytes) -> None:
    """Write a file of the system's configuration, whole or not at all, for everybody to read.

    Directories that are missing are made, for everybody to enter.

    Raises:
        OSError: if it cannot be written.
    """
    _make_public(path.parent)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, 0o644)  # as other configuration is: it holds no secret
    new.replace(path)


def _make_public(directory: Path) -> None:
    """Make a directory with its parents, mode 0755 whatever the umask is."""
    if directory.is_dir():
        return
    _make_public(directory.parent)
    # It has its mode as soon as it has its name, so that an interruption leaves no closed one.
    new = directory.with_name(f".{directory.name}.new")
    new.mkdir(exist_ok=True)
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o755)
    finally:
        os.close(fd)
    try:
        new.rename(directory)
    except OSError:
        if not directory.is_dir():  # another command was faster
            raise
        new.rmdir()


def below(directory: Path, name: str) -> Path:
    """Give the path of a name in a directory; for names that come from elsewhere.

    Raises:
        PoclabError: if the name would lead anywhere else.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise PoclabError(
            f"invalid file name {shown(name)}",
            why=f"it would lead out of {directory}",
            fix="look at where it comes from: `poclab doctor` lists damaged records",
        )
    return directory / name


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


def pieces(descriptor: int) -> Iterator[tuple[int, memoryview]]:
    """All of a file's bytes, up to 1 MiB at a time; zeros stand for holes without being read.

    The memory of a piece is used again for the next one.
    """
    buffer = bytearray(MIB)
    zeros = memoryview(bytes(MIB))
    offset, size = 0, os.fstat(descriptor).st_size
    for begin, end in chain(data_ranges(descriptor, size), [(size, size)]):
        while offset < begin:
            count = min(MIB, begin - offset)
            yield offset, zeros[:count]
            offset += count
        while offset < end:
            count = os.preadv(descriptor, [memoryview(buffer)[: end - offset]], offset)
            if not count:
                raise OSError(errno.EIO, "it became shorter while it was read")
            yield offset, memoryview(buffer)[:count]
            offset += count


def data_ranges(descriptor: int, size: int, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Where a file has data from `offset` to `size`: begin and end in bytes; the rest is holes."""
    while offset < size:
        begin = _seek(descriptor, offset, os.SEEK_DATA, size)
        offset = _seek(descriptor, begin, os.SEEK_HOLE, size)
        if begin < offset:
            yield begin, offset


def _seek(descriptor: int, offset: int, what: int, size: int) -> int:
    """Where the next data or hole begins; a file system that cannot tell has data alone."""
    if offset >= size:
        return size
    try:
        return min(os.lseek(descriptor, offset, what), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # lseek(2): no more data up to the end
            return size
        return offset if what == os.SEEK_DATA else size
