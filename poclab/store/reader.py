"""Reads a version's disk as it is stored, from its first byte to its last, packed or not.

The store is held, shared, only while a disk is opened: what is removed or packed while it is
read stays readable to the end, and nobody is held up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO

from poclab.core import events
from poclab.core.files import pieces
from poclab.core.units import MIB
from poclab.disks import compression
from poclab.model.version_volumes import base_volume, packed_volume
from poclab.store.versions import Store
from poclab.virt.errors import GoneError
from poclab.virt.host import Host
from poclab.virt.volume_stream import VolumeStream, opened

Pieces = Iterator[bytes | memoryview]


@contextmanager
def reading(host: Host, store: Store, digest: str) -> Iterator[Pieces]:
    """Open a base; the memory of a piece may be used again for the next one.

    Args:
        host: where it is.
        store: the versions there.
        digest: the base's digest.

    Raises:
        GoneError: there is no such base.
        DamagedError: it is packed and cannot be unpacked.
        PoclabError: libvirt does not give it.
        OSError: it cannot be read.
    """
    base = base_volume(digest)
    with ExitStack() as stack:
        with store.reading():
            names = host.pool.names()
            packed = base not in names
            volume = packed_volume(base) if packed else base
            if volume not in names:
                raise GoneError(f"{base} is gone")
            events.debug(f"reading {volume}")
            source = stack.enter_context(opened(host, volume))
        yield compression.unpacked(source, volume) if packed else _pieces(source)


def _pieces(source: FileIO | VolumeStream) -> Pieces:
    if isinstance(source, FileIO):
        yield from (piece for _, piece in pieces(source.fileno()))
        return
    while piece := source.read(MIB):
        yield piece
