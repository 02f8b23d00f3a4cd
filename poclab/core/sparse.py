"""Files with holes where they would have zeros."""

from __future__ import annotations

import os


def write_sparse(descriptor: int, data: bytes, offset: int, block: int) -> None:
    """Write what is not zeros to a file that has nothing there, as few and as long runs as can be.

    The file's end is not moved: a file that ends with zeros needs `os.ftruncate` besides.

    Args:
        descriptor: the file.
        data: what to write.
        offset: where, in bytes.
        block: bytes of zeros that are worth a hole.

    Raises:
        OSError: it cannot be written.
    """
    zeros = bytes(block)
    view = memoryview(data)
    begin = 0  # of the run
    for start in range(0, len(data) + block, block):
        piece = data[start : start + block]  # bytes, which compare much faster than views
        if piece and piece != zeros[: len(piece)]:
            continue
        if begin < start:
            write_all(descriptor, view[begin:start], offset + begin)
        begin = start + block


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the data, however much the system takes at once.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
