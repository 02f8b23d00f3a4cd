"""Standard input to a sparse file: a disk must be looked at before it is read in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from poclab.core import events, free_space
from poclab.core.errors import PoclabError
from poclab.core.sparse import write_sparse
from poclab.core.units import MIB, TIB, format_size
from poclab.disks.digest import DISKS, Digester
from poclab.disks.formats import DRIVERS, detect, opened
from poclab.disks.formats.base import HEAD
from poclab.disks.formats.detect import refuse_wrapped, wrong_format

DEFAULT_LIMIT = TIB
NAME = "standard input"
_BLOCK = 64 * 1024  # what is left out when it is all zeros
_ROOM_EVERY = 64 * MIB


def spool(
    source: BinaryIO,
    target: Path,
    *,
    limit: int = DEFAULT_LIMIT,
    expected: str | None = None,
    like: str = DISKS,
) -> str:
    """Write a stream to a file, leaving out what is zeros, and give its digest.

    A stream that begins like nothing that can be imported is refused at its beginning.

    Args:
        source: the stream.
        target: the file to make; removing it is the caller's.
        limit: bytes the stream may have.
        expected: QEMU's name of the format it must have, or "ova"; only a disk that is called
            "raw" or "vpc" may begin with anything.
        like: an algorithm, or a digest to compute another one like.

    Returns:
        The stream's digest, `ALGORITHM:HEX`.

    Raises:
        PoclabError: the stream is too long, there is no room, or it is no disk.
    """
    digest = Digester(like)
    done, looked, asked = 0, False, 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for piece in _pieces(source):
            if done + len(piece) > limit:
                raise PoclabError(
                    f"{NAME} is longer than {format_size(limit)}",
                    fix="allow more with --size-limit",
                )
            if done >= asked:
                free_space.check(target.parent, NAME, place=target.parent.parent)
                asked += _ROOM_EVERY
            digest.update(piece)
            _store(file.fileno(), piece, done)
            done += len(piece)
            if not looked and done >= HEAD:
                os.ftruncate(file.fileno(), done)
                _look(target, expected)
                looked = True
            events.progress("reading the disk", done, None)
        os.ftruncate(file.fileno(), done)
    if not done:
        raise PoclabError(f"{NAME} is empty", fix="pipe a disk in, or give a file")
    return str(digest)


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    """Read the stream in pieces of 1 MiB, the last one shorter; a pipe gives 64 KiB at a time."""
    while True:
        piece = source.read(MIB)
        if not piece:
            return
        yield piece


def _store(descriptor: int, piece: bytes, offset: int) -> None:
    try:
        write_sparse(descriptor, piece, offset, _BLOCK)
    except OSError as error:
        raise PoclabError(
            f"{NAME} cannot be stored", why=f"{error.strerror}", fix="make room in the pool"
        ) from error


def _look(target: Path, expected: str | None) -> None:
    """Refuse at its beginning what nothing that follows can make a disk.

    Raises:
        PoclabError: if it is none, or not what is expected.
    """
    with opened(target, NAME) as window:
        kind = detect(window, whole=False)
        driver = DRIVERS.get(kind, "ova")
        if expected == "vpc" and driver == "raw":
            return  # a fixed VHD is a raw disk with a footer, which may still come
        if kind == "raw" and expected is None:
            refuse_wrapped(window)
            raise window.refused(
                "it has no partition table, and begins like no other disk",
                "if it is a disk all the same, say --format raw (or vhd, for a fixed VHD)",
            )
        if expected not in (None, driver):
            raise wrong_format(window, kind, expected)
