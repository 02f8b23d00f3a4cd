"""Where files are on the disk, so that bytes which several files have in common count once.

On XFS and btrfs files may share blocks. Each file's size says nothing of that, and neither does
the kernel's mark for shared extents (FIEMAP_EXTENT_SHARED): it does not tell with whom. So the
physical places of all files are laid over each other. `read` asks the kernel; the rest is pure.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

Range = tuple[int, int]  # of a disk: where it begins and ends, in bytes

# linux/fs.h: _IOWR('f', 11, struct fiemap).
_FS_IOC_FIEMAP = 0xC020660B
# linux/fiemap.h, struct fiemap: fm_start, fm_length, fm_flags, fm_mapped_extents,
# fm_extent_count, fm_reserved; then the extents.
_FIEMAP = struct.Struct("=QQIIII")
# struct fiemap_extent: fe_logical, fe_physical, fe_length, two reserved, fe_flags, three reserved.
_EXTENT = struct.Struct("=QQQ16xI12x")
_MAX_OFFSET = 2**64 - 1  # FIEMAP_MAX_OFFSET
_LAST = 0x1  # FIEMAP_EXTENT_LAST
_UNKNOWN = 0x2  # FIEMAP_EXTENT_UNKNOWN: no place yet, as data that was not written out
_ENCODED = 0x8  # FIEMAP_EXTENT_ENCODED: compressed, so the length is not what it takes
_INLINE = 0x200  # FIEMAP_EXTENT_DATA_INLINE: among the metadata
_COUNT = 2048  # extents that are asked for at a time
_STAT_BLOCK = 512  # bytes that st_blocks counts, stat(2)


@dataclass(frozen=True)
class Layout:
    """What a file takes.

    Attributes:
        ranges: its places on the disk, in any order.
        elsewhere: bytes that it takes and that have no place of their own, or an unknown one.
        known: whether the places are known; if not, all is `elsewhere`.
    """

    ranges: tuple[Range, ...]
    elsewhere: int
    known: bool = True


@dataclass(frozen=True)
class Tally:
    """What a group of files takes.

    Attributes:
        allocated: bytes on the disk, each counted once.
        unique: those of them that no other group has.
    """

    allocated: int
    unique: int


def of_file(path: Path) -> Layout:
    """What a file takes; by its count of blocks where its places cannot be known.

    Raises:
        FileNotFoundError: it is not there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = read(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError:  # not ours to read, or a file system that does not tell
        found = None
    if found is None:
        return Layout((), path.lstat().st_blocks * _STAT_BLOCK, known=False)
    return found


def read(descriptor: int) -> Layout | None:
    """Ask the kernel where a file is; None when it has compressed extents.

    Nothing is written out for that: data without a place counts as the file's own, which it is.

    Raises:
        OSError: the file system does not tell.
    """
    ranges: list[Range] = []
    elsewhere = start = 0
    while True:
        request = bytearray(_FIEMAP.size + _COUNT * _EXTENT.size)
        _FIEMAP.pack_into(request, 0, start, _MAX_OFFSET - start, 0, 0, _COUNT, 0)
        ioctl(descriptor, _FS_IOC_FIEMAP, request)
        mapped = _FIEMAP.unpack_from(request)[3]
        end, flags = start, 0
        extents = memoryview(request)[_FIEMAP.size :][: mapped * _EXTENT.size]
        for logical, physical, length, flags in _EXTENT.iter_unpack(extents):
            end = logical + length
            if flags & (_UNKNOWN | _INLINE):
                elsewhere += length
            elif flags & _ENCODED:
                return None
            else:
                ranges.append((physical, physical + length))
        if end <= start or flags & _LAST:
            return Layout(tuple(ranges), elsewhere)
        start = end


# --- pure -------------------------------------------------------------------------------


def union(ranges: Iterable[Range]) -> list[Range]:
    """The same places in order, none twice."""
    merged: list[Range] = []
    for begin, end in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        elif begin < end:
            merged.append((begin, end))
    return merged


def spans(groups: Sequence[Iterable[Range]]) -> Iterator[tuple[int, Collection[int]]]:
    """Cut the disk wherever a group begins or ends.

    Args:
        groups: the places of each, none twice (see `union`).

    Yields:
        The bytes of a piece, and the numbers of the groups that have it: one at least. They
        are to be looked at before the next piece.
    """
    count = len(groups)
    # A cut is one number, which sorts much faster than a tuple: its place, what begins (count
    # and more) or ends there (below count).
    cuts: list[int] = []
    for number, ranges in enumerate(groups):
        for begin, end in ranges:
            cuts += (2 * count * begin + count + number, 2 * count * end + number)
    cuts.sort()
    inside: set[int] = set()
    before = 0
    for cut in cuts:
        place, what = divmod(cut, 2 * count)
        if inside and place > before:
            yield place - before, inside
        before = place
        if what < count:
            inside.discard(what)
        else:
            inside.add(what - count)


def tally(groups: Sequence[Iterable[Range]]) -> tuple[list[Tally], Tally]:
    """What each group takes, and what all take together; unique of all is what one alone has."""
    allocated, unique = [0] * len(groups), [0] * len(groups)
    total = 0
    for size, inside in spans(groups):
        total += size
        for number in inside:
            allocated[number] += size
        if len(inside) == 1:
            unique[number] += size
    each = [Tally(*pair) for pair in zip(allocated, unique, strict=True)]
    return each, Tally(total, sum(unique))


def freed(removed: Sequence[Iterable[Range]], kept: Iterable[Range]) -> list[int]:
    """What the removal of each group frees when they go one after the other.

    Args:
        removed: the places of the groups, in the order in which they go.
        kept: the places of all that stays.
    """
    sizes = [0] * (len(removed) + 1)
    for size, inside in spans([*removed, kept]):
        sizes[max(inside)] += size  # whoever has it last
    return sizes[:-1]
