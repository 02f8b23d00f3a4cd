"""Disk files compressed and brought back: what a version is on while nobody uses it.

A packed file is one Zstandard frame (RFC 8878) with a checksum, and with the size of what is in
it; `zstd -d` reads it. The file it is made of is digested on the way, and the packed one is read
again before anybody may rely on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol, cast

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.core.sparse import write_sparse
from poclab.core.units import MIB
from poclab.disks.digest import Digester

# On a Debian of 389 MiB, 2 cores: level 3 packs to 42 % in 1.0 s, with matches over a window of
# 32 MiB to 38 % in 1.2 s, of 128 MiB to 35 % with 320 MiB of memory; level 6 to 34 % in 2.3 s.
_LEVEL = 3
_WINDOW = 25  # bits of the window's size
_JOB = 8 * MIB  # what a thread packs at a time: else 128 MiB, in memory
_THREADS = 4
_HOLE = 64 * 1024  # zeros that come back as a hole: a cluster of qcow2


class Readable(Protocol):
    """What bytes come out of, in order."""

    def read(self, size: int, /) -> bytes:
        """Some bytes, `size` at most; none at the end."""


class DamagedError(PoclabError):
    """A file does not have the content that it was stored with."""


def pack(source: Path, target: Path, digest: str) -> None:
    """Compress a file, and see that it comes back.

    Args:
        source: the file.
        target: the file to make; removing it when this fails is the caller's.
        digest: what the source was stored with, `ALGORITHM:HEX`.

    Raises:
        DamagedError: the source has another digest now.
        OSError: it cannot be read, or there is no room.
    """
    import zstandard

    size = source.stat().st_size
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        enable_ldm=True,
        window_log=_WINDOW,
        job_size=_JOB,
        threads=min(_THREADS, os.cpu_count() or 1),
        write_checksum=True,
    )
    found = Digester(digest)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    with (
        source.open("rb", buffering=0) as file,
        target.open("xb") as out,
        compressor.stream_writer(out, size=size, closefd=False) as writer,
    ):
        done = 0
        while piece := file.read(MIB):
            found.update(piece)
            writer.write(piece)
            done += len(piece)
            events.progress("pack", done, size)
    _compare(source.name, str(found), digest)
    _compare(target.name, packed_digest(target, digest), digest)


def unpack(source: Path, target: Path, digest: str) -> None:
    """Bring a packed file back, with holes where it has zeros.

    Args:
        source: the packed file.
        target: the file to make; removing it when this fails is the caller's.
        digest: what the file was stored with, `ALGORITHM:HEX`.

    Raises:
        DamagedError: that is not what comes out.
        OSError: it cannot be read, or there is no room.
    """
    found = Digester(digest)
    done = 0
    with target.open("xb", buffering=0) as out:
        for piece in _pieces(source):
            found.update(piece)
            write_sparse(out.fileno(), piece, done, _HOLE)
            done += len(piece)
        os.ftruncate(out.fileno(), done)
    _compare(source.name, str(found), digest)


def packed_digest(path: Path, like: str) -> str:
    """The digest of what is in a packed file, `ALGORITHM:HEX`.

    Args:
        path: the file.
        like: a digest to compute another one like.

    Raises:
        DamagedError: it cannot be unpacked.
        OSError: it cannot be read.
    """
    found = Digester(like)
    for piece in _pieces(path):
        found.update(piece)
    return str(found)


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for piece in unpacked(file, path.name):
            yield piece
            events.progress("unpack", file.tell(), size)


def unpacked(source: Readable, name: str) -> Iterator[bytes]:
    """What is in a packed file, up to 1 MiB at a time.

    Args:
        source: the packed file.
        name: what to call it.

    Raises:
        DamagedError: it cannot be unpacked.
        OSError: it cannot be read.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW)
    try:
        file = cast("IO[bytes]", source)  # only read() is called
        yield from decompressor.read_to_iter(file, read_size=MIB, write_size=MIB)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{shown(name, 200)} is damaged", why=str(error)) from error


def _compare(name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise DamagedError(f"{shown(name, 200)} is damaged", why=f"its digest is {found}")
