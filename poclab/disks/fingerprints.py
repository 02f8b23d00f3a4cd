"""Which 4 KiB blocks of a file other files have too. No file system is asked here.

A file's blocks are known by their digests, 8 bytes each: what has the same digest is compared
before anything is done with it (see `sharing`), so a digest need not be safe against an
attacker, and 64 bits make an accident rare enough not to matter for speed.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO

from poclab.core.files import data_ranges
from poclab.core.units import MIB

BLOCK = 4096
DIGEST = 8  # bytes
# Blocks of a window, 4 GiB; its tables take 28 bytes a block.
WINDOW = 1 << 20
_CHUNK = 1 << 16  # digests that are read at once
_NUMBER = 40  # bits of a block's number: 4 EiB


def _short(block: bytes | memoryview) -> bytes:
    # With the processor's own instructions SHA-256 is the fastest of hashlib: 2.3 us a block,
    # BLAKE2b 3.2 us, MD5 5.0 us.
    return sha256(block, usedforsecurity=False).digest()[:DIGEST]


_ZEROS = _short(bytes(BLOCK))
_ZERO = int.from_bytes(_ZEROS, sys.byteorder)


@dataclass(frozen=True)
class Run:
    """Blocks in a row that another file has in the same order.

    Attributes:
        source: the number of the other file.
        origin: the first block there.
        block: the first block here.
        count: how many.
    """

    source: int
    origin: int
    block: int
    count: int


def fingerprint(
    descriptor: int, target: BinaryIO, tell: Callable[[int, int], None] = lambda _done, _all: None
) -> None:
    """Write the digests of a file's whole blocks, in order; holes are not read.

    Args:
        descriptor: the file.
        target: where the digests go, 8 bytes a block.
        tell: called now and then with the bytes that are done, and all.

    Raises:
        OSError: the file cannot be read, or the target not written.
    """
    size = os.fstat(descriptor).st_size // BLOCK * BLOCK
    buffer = memoryview(bytearray(MIB))
    done = 0
    for begin, end in data_ranges(descriptor, size):
        # A file system with smaller blocks may have data that begins within one of ours.
        offset = max(done, begin // BLOCK * BLOCK)
        stop = min(size, -(-end // BLOCK) * BLOCK)
        _write_zeros(target, (offset - done) // BLOCK)
        while offset < stop:
            count = os.preadv(descriptor, [buffer[: stop - offset]], offset) // BLOCK * BLOCK
            if not count:
                raise OSError(f"it became shorter than {size} bytes while it was read")
            starts = range(0, count, BLOCK)
            target.write(b"".join([_short(buffer[at : at + BLOCK]) for at in starts]))
            offset += count
            tell(offset, size)
        done = max(done, stop)
    _write_zeros(target, (size - done) // BLOCK)


def fingerprint_stream(
    pieces: Iterable[bytes | memoryview], target: BinaryIO, tell: Callable[[int], None]
) -> None:
    """Write the digests of what comes in pieces of any sizes; a last part of a block is left out.

    Args:
        pieces: the bytes, in order.
        target: where the digests go, 8 bytes a block.
        tell: called with the bytes that are done.

    Raises:
        OSError: the target cannot be written.
    """
    rest, done = b"", 0
    for piece in pieces:
        view = memoryview(rest + piece if rest else piece)
        whole = len(view) // BLOCK * BLOCK
        target.write(b"".join([_short(view[at : at + BLOCK]) for at in range(0, whole, BLOCK)]))
        rest = bytes(view[whole:])
        done += whole
        tell(done)


def missing(found: BinaryIO, others: BinaryIO) -> int:
    """How many blocks of zeros aside are in one file of digests and not in another.

    Args:
        found: digests of the blocks that are counted, from its beginning.
        others: digests of the blocks that they are looked up in.
    """
    count = 0
    found.seek(0)
    while len(window := Window(digests(found, WINDOW))):
        others.seek(0)
        window.look_in(0, digests(others))
        count += window.missing()
    return count


def _write_zeros(target: BinaryIO, count: int) -> None:
    while count > 0:
        target.write(_ZEROS * min(count, _CHUNK))
        count -= _CHUNK


def digests(file: BinaryIO, count: int = sys.maxsize) -> Iterator[array[int]]:
    """Read what `fingerprint` wrote from where the file is, in pieces, at most `count` digests."""
    while count > 0:
        data = file.read(min(count, _CHUNK) * DIGEST)
        piece = array("Q")
        piece.frombytes(data[: len(data) // DIGEST * DIGEST])
        if not piece:
            return
        yield piece
        count -= len(piece)


class Window:
    """Some blocks of a file in a row, and where other files have the same.

    A hash table with open addressing in arrays: a dict would take ten times the memory. Blocks
    of zeros are left out, they come by the thousand and are holes for the most part.
    """

    def __init__(self, blocks: Iterable[array[int]], first: int = 0) -> None:
        """Take the blocks.

        Args:
            blocks: their digests.
            first: the number of the first one in the file.
        """
        self._first = first
        self._digests = array("Q")
        for piece in blocks:
            self._digests.extend(piece)
        count = len(self._digests)
        self._mask = (1 << (2 * count).bit_length()) - 1
        self._slots = array("I", bytes(4 * (self._mask + 1)))  # a block's number and 1
        self._same = array("I", bytes(4 * count))  # the next block with the same digest, and 1
        self._origin = array("Q", bytes(8 * count))  # source and block, and 1
        self._fill()

    def _fill(self) -> None:
        known, slots, same, mask = self._digests, self._slots, self._same, self._mask
        for number, value in enumerate(known):
            if value == _ZERO:
                continue
            slot = value & mask
            while (held := slots[slot]) and known[held - 1] != value:
                slot = (slot + 1) & mask
            same[number] = held
            slots[slot] = number + 1

    def __len__(self) -> int:
        return len(self._digests)

    def look_in(self, source: int, blocks: Iterable[array[int]]) -> None:
        """Note where a file has these blocks; what an earlier one has stays with that.

        Args:
            source: the file's number.
            blocks: the digests of its blocks from the first on.
        """
        known, slots, mask, origin = self._digests, self._slots, self._mask, self._origin
        place = source << _NUMBER
        for piece in blocks:
            for value in piece:
                place += 1
                slot = value & mask
                while held := slots[slot]:
                    if known[held - 1] == value:
                        if not origin[held - 1]:
                            self._note(held, place)
                        break
                    slot = (slot + 1) & mask

    def _note(self, held: int, place: int) -> None:
        while held:
            self._origin[held - 1] = place
            held = self._same[held - 1]

    def missing(self) -> int:
        """How many blocks, those of zeros aside, nobody was found to have."""
        pairs = zip(self._digests, self._origin, strict=True)
        return sum(not place and value != _ZERO for value, place in pairs)

    def runs(self) -> Iterator[Run]:
        """What was found, in the order of the blocks, as few and as long runs as there are."""
        begin, count, start = 0, 0, 0
        for number, place in enumerate(self._origin):
            if count and place == start + count:
                count += 1
                continue
            if count:
                yield self._run(begin, count, start)
            begin, count, start = number, int(place > 0), place
        if count:
            yield self._run(begin, count, start)

    def _run(self, begin: int, count: int, start: int) -> Run:
        source, block = divmod(start - 1, 1 << _NUMBER)
        return Run(source, block, self._first + begin, count)
