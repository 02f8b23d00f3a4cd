"""What the readers of all disk formats share: a part of a file, tables, refusals."""

from __future__ import annotations

import os
import stat
import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from poclab.errors import PoclabError
from poclab.units import MIB, TIB, format_size

MAX_VIRTUAL_SIZE = 64 * TIB
SECTOR = 512
AGAIN = "copy it again"

# All the inspectors find what they need in the first MiB or give up.
HEAD = 2 * MIB
# The longest thing at a file's end: marker, footer and end marker of a VMDK.
TAIL = 3 * SECTOR
_CHUNK = 256 * 1024


@dataclass(frozen=True)
class DiskInfo:
    """What a disk file is.

    Attributes:
        format: QEMU's name: "qcow2", "raw", "vmdk", "vdi", "vhdx" or "vpc".
        virtual_size: bytes the guest sees.
        packed: whether the data may be larger than the file (it is compressed, or its
            pieces are smaller than the 64 KiB that qcow2 stores at least).
    """

    format: str
    virtual_size: int
    packed: bool = False


@dataclass(frozen=True)
class Part:
    """A run of bytes in a file: a disk that is a member of an archive.

    Attributes:
        offset: where it begins.
        size: how many bytes it has, a multiple of 512.
    """

    offset: int
    size: int


@dataclass(frozen=True)
class Window:
    """An open file, or a part of one, to read from.

    Attributes:
        descriptor: the file's.
        name: what to call it in messages, fit to be printed.
        offset: where it begins in the file.
        size: bytes.
    """

    descriptor: int
    name: str
    offset: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end, none beyond it."""
        wanted = max(0, min(length, self.size - offset))
        pieces = []
        at = self.offset + offset
        while wanted:
            piece = os.pread(self.descriptor, wanted, at)
            if not piece:
                break
            pieces.append(piece)
            at += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def head(self) -> bytes:
        """The beginning, as much as any format needs to be known by."""
        return self.read(0, HEAD)

    def tail(self) -> bytes:
        """The end, where some formats have a footer."""
        return self.read(max(0, self.size - TAIL), TAIL)

    def unpack(self, form: struct.Struct, offset: int = 0) -> tuple[int | bytes, ...]:
        """Read a structure.

        Raises:
            PoclabError: it lies beyond the end.
        """
        data = self.read(offset, form.size)
        if len(data) < form.size:
            raise self.refused("it is truncated", AGAIN)
        return form.unpack(data)

    def number(self, form: str, offset: int) -> int:
        """Read one number in a `struct` notation."""
        return int(self.unpack(struct.Struct(form), offset)[0])

    def holds(self, offset: int, size: int) -> bool:
        """Whether so many bytes lie within it."""
        return 0 <= offset <= self.size and 0 <= size <= self.size - offset

    def table(self, offset: int, count: int, kind: str, *, big: bool) -> Iterator[array[int]]:
        """Read a table of numbers, a piece at a time, so that a large one takes no memory.

        Args:
            offset: where it begins.
            count: how many numbers.
            kind: an `array` type code: "I" (32 bits) or "Q" (64 bits).
            big: big-endian; otherwise little-endian.
        """
        width = array(kind).itemsize
        end = offset + count * width
        while offset < end:
            piece = array(kind)
            data = self.read(offset, min(_CHUNK, end - offset))
            if not data or len(data) % width:
                raise self.refused("it is truncated: its tables lie beyond its end", AGAIN)
            piece.frombytes(data)
            if big == (sys.byteorder == "little"):
                piece.byteswap()
            yield piece
            offset += len(data)

    def refused(self, why: str, fix: str = "") -> PoclabError:
        """The error that this is not a disk to take."""
        return PoclabError(f"{self.name} is not a disk poclab takes", why=why, fix=fix)

    def check_size(self, virtual_size: int) -> int:
        """Give the size of the disk back when a disk can have it.

        Raises:
            PoclabError: none can.
        """
        if not 0 < virtual_size <= MAX_VIRTUAL_SIZE:
            raise self.refused(
                f"its size would be {virtual_size} bytes",
                f"a disk has at least one byte and at most {format_size(MAX_VIRTUAL_SIZE)}",
            )
        return virtual_size


@contextmanager
def opened(path: Path, name: str, part: Part | None = None) -> Iterator[Window]:
    """Open a regular file to look at, without waiting for anything.

    Raises:
        PoclabError: it cannot be read, or is no regular file.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise PoclabError(f"{name} cannot be read", why=f"{why}") from error
    try:
        found = os.fstat(descriptor)
        whole = Window(descriptor, name, 0, found.st_size)
        if not stat.S_ISREG(found.st_mode):
            directory = stat.S_ISDIR(found.st_mode)
            what = "a directory" if directory else "a device, pipe or socket"
            raise whole.refused(f"it is {what}, not a regular file")
        if part is not None and not whole.holds(part.offset, part.size):
            raise whole.refused("it is truncated", AGAIN)
        yield whole if part is None else Window(descriptor, name, part.offset, part.size)
    except OSError as error:
        raise PoclabError(f"{name} cannot be read", why=f"{error.strerror}") from error
    finally:
        os.close(descriptor)
