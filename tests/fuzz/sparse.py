"""Disk files as short inputs: what is not zeros, with its places.

A disk's headers and tables lie megabytes apart. A fuzzer would spend its time on the zeros
between them, so an input is the file's size in sectors and then runs of bytes, each with its place.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZE = struct.Struct("<I")  # sectors of 512 bytes
_RUN = struct.Struct("<II")  # offset in bytes, length
_LARGEST = 64 * 1024 * 1024
_PIECE = 512


def packed(data: bytes) -> bytes:
    """Make an input of a file's content; at most the first 512 bytes of a longer run are kept."""
    found = [_SIZE.pack(-(-len(data) // 512))]
    before = -_PIECE
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE].rstrip(b"\0")
        # Data in a row is a guest's; what lies alone, or begins a row, is a header or a table.
        if piece and (at != before + _PIECE or at < 8192):
            found.append(_RUN.pack(at, len(piece)) + piece)
        if piece:
            before = at
    return b"".join(found)


@contextmanager
def unpacked(data: bytes) -> Iterator[int]:
    """Make the file of an input, in memory; gives its descriptor."""
    descriptor = os.memfd_create("disk", os.MFD_CLOEXEC)
    try:
        if len(data) >= _SIZE.size:
            size = min(_SIZE.unpack_from(data)[0] * 512, _LARGEST)
            os.ftruncate(descriptor, size)
            for at, piece in _runs(data):
                os.pwrite(descriptor, piece[: max(0, size - at)], min(at, size))
        yield descriptor
    finally:
        os.close(descriptor)


def _runs(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = _SIZE.size
    while at + _RUN.size <= len(data):
        offset, length = _RUN.unpack_from(data, at)
        at += _RUN.size
        yield offset, data[at : at + length]
        at += length


def in_memory(data: bytes) -> int:
    """A file in memory with this content; gives its descriptor, to be closed by the caller."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    return descriptor


def path_of(descriptor: int) -> Path:
    """A path that opens what a descriptor of this process has open."""
    return Path(f"/proc/self/fd/{descriptor}")
