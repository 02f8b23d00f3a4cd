"""What the readers of all disk formats share: a part of a file, tables, refusals."""

from __future__ import annotations

import os
import stat
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from poclab.core.errors import PoclabError
from poclab.core.files import data_ranges
from poclab.core.units import KIB, MIB, TIB, format_size

MAX_VIRTUAL_SIZE = 64 * TIB
SECTOR = 512
AGAIN = "copy it again"

# All the inspectors find what they need in the first MiB or give up.
HEAD = 2 * MIB
# The longest thing at a file's end: marker, footer and end marker of a VMDK.
TAIL = 3 * SECTOR
_CHUNK = 256 * KIB
# What a qcow2 copy stores at least: poclab makes them with clusters of 64 KiB.
QCOW2_CLUSTER = 64 * KIB
# Runs of data that are told apart in one file; 16 bytes each.
_MOST_RANGES = 1 << 20


@dataclass(frozen=True)
class DiskInfo:
    """What a disk file is.

    Attributes:
        format: QEMU's name: "qcow2", "raw", "vmdk", "vdi", "vhdx" or "vpc".
        virtual_size: bytes the guest sees.
        data: bytes of these that a qcow2 copy holds at most; the rest reads as zeros.
    """

    format: str
    virtual_size: int
    data: int


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
        whole: whether it is all of the file.
    """

    descriptor: int
    name: str
    offset: int
    size: int
    whole: bool = True

    def part(self, part: Part, name: str) -> Window:
        """A part of it, by a name of its own.

        Raises:
            PoclabError: if it lies beyond the end.
        """
        if not self.holds(part.offset, part.size):
            raise self.refused("it is truncated", AGAIN)
        return Window(self.descriptor, name, self.offset + part.offset, part.size, whole=False)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end, none beyond it.

        Raises:
            PoclabError: if the file cannot be read.
        """
        wanted = max(0, min(length, self.size - offset))
        pieces = []
        at = self.offset + offset
        while wanted:
            try:
                piece = os.pread(self.descriptor, wanted, at)
            except OSError as error:
                raise PoclabError(f"{self.name} cannot be read", why=f"{error.strerror}") from error
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

        Raises:
            PoclabError: if it goes beyond the end.
        """
        width = array(kind).itemsize
        end = offset + count * width
        while offset < end:
            piece = array(kind)
            size = min(_CHUNK, end - offset)
            data = self.read(offset, size)
            if len(data) < size:
                raise self.refused("it is truncated: its tables lie beyond its end", AGAIN)
            piece.frombytes(data)
            if big == (sys.byteorder == "little"):
                piece.byteswap()
            yield piece
            offset += len(data)

    @cached_property
    def _data(self) -> tuple[array[int], array[int]]:
        """Where runs of data begin and end; what is beyond the most runs counts as data."""
        begins, ends = array("Q"), array("Q")
        for begin, end in data_ranges(self.descriptor, self.offset + self.size, self.offset):
            begins.append(begin - self.offset)
            ends.append(end - self.offset)
            if len(begins) == _MOST_RANGES:
                ends[-1] = self.size
                break
        return begins, ends

    @cached_property
    def stored(self) -> int:
        """Bytes that are not in holes."""
        begins, ends = self._data
        return sum(ends) - sum(begins)

    @cached_property
    def is_sparse(self) -> bool:
        """Whether most of it is holes."""
        return self.size > 2 * self.stored

    def has_data(self, offset: int, size: int) -> bool:
        """Whether so many bytes are anything but a hole, which reads as zeros."""
        begins, ends = self._data
        run = bisect_right(ends, offset)
        return run < len(begins) and begins[run] < offset + size

    def capacity(self, unit: int) -> int:
        """How many pieces of `unit` bytes that do not overlap have data here at most."""
        most = -(-self.size // unit)
        if not self.is_sparse:
            return most
        # A run of data reaches into a piece at either end.
        runs = zip(*self._data, strict=True)
        return min(most, sum((end - begin) // unit + 2 for begin, end in runs))

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


class Claims:
    """Counts the pieces of data that a disk's tables lead to: the file must hold as many.

    Tables can name the same bytes again and again, so that a small file makes a disk of any size.
    In a sound disk no two pieces overlap, so there are no more of them than fit into the file.
    A piece in a hole reads as zeros, takes no room in a copy and does not count.
    """

    def __init__(self, window: Window, unit: int) -> None:
        """Begin.

        Args:
            window: the disk.
            unit: bytes of a piece.
        """
        self._window = window
        self._unit = unit
        self._most = window.capacity(unit)
        self.count = 0

    def add(self, offsets: Sequence[int]) -> None:
        """Count pieces.

        Raises:
            PoclabError: if the file cannot hold as many.
        """
        window, unit = self._window, self._unit
        if window.is_sparse:
            offsets = [offset for offset in offsets if window.has_data(offset, unit)]
        self.count += len(offsets)
        if self.count > self._most:
            raise overclaimed(window)


def overclaimed(window: Window) -> PoclabError:
    """The error that a disk claims more data than its file can hold."""
    return window.refused(
        "it is truncated or damaged: its tables claim more data than the file holds", AGAIN
    )


def copied(pieces: int, unit: int, virtual_size: int) -> int:
    """Bytes that a qcow2 copy holds of some pieces of data at most, each in a place of its own."""
    return min(pieces * max(unit, QCOW2_CLUSTER), virtual_size)


@contextmanager
def opened(path: Path, name: str) -> Iterator[Window]:
    """Open a regular file to look at, without waiting for anything.

    Whatever becomes of its name, the window stays on the file that was opened.

    Raises:
        PoclabError: if it cannot be read, or is no regular file.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise PoclabError(f"{name} cannot be read", why=f"{why}") from error
    try:
        found = os.fstat(descriptor)
        window = Window(descriptor, name, 0, found.st_size)
        if not stat.S_ISREG(found.st_mode):
            directory = stat.S_ISDIR(found.st_mode)
            what = "a directory" if directory else "a device, pipe or socket"
            raise window.refused(f"it is {what}, not a regular file")
        yield window
    finally:
        os.close(descriptor)
