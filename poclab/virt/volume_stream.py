"""Volumes as files of this machine, whichever way to the pool there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import libvirt

from poclab.core import events
from poclab.core.files import below
from poclab.core.sparse import write_all
from poclab.core.units import MIB
from poclab.virt.errors import GoneError, libvirt_errors
from poclab.virt.host import Host
from poclab.virt.pool_local import LocalPool


class VolumeStream:
    """A volume that libvirt sends, from its first byte to its last.

    What is removed meanwhile comes to its end all the same: the daemon has it open.
    """

    def __init__(self, host: Host, name: str) -> None:
        self._what = f"volume {name} cannot be read"
        with libvirt_errors(self._what):
            self._stream = host.conn.newStream(0)
            volume = host.conn.storageVolLookupByPath(host.pool.path(name))
            volume.download(self._stream, 0, 0, 0)  # 0 bytes is all
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Some bytes, `size` at most; none at the end.

        Raises:
            PoclabError: libvirt does not give them.
        """
        if self._ended:
            return b""
        with libvirt_errors(self._what):
            data = bytes(self._stream.recv(size))
            if not data:
                self._stream.finish()
                self._ended = True
        return data

    def close(self) -> None:
        """Have the daemon stop sending."""
        if not self._ended:
            self._ended = True
            with suppress(libvirt.libvirtError):
                self._stream.abort()


@contextmanager
def opened(host: Host, name: str) -> Iterator[FileIO | VolumeStream]:
    """Read a volume in order, wherever it is; nothing is copied.

    Args:
        host: the host.
        name: the volume.

    Raises:
        GoneError: there is no such volume.
        PoclabError: libvirt does not give it.
        OSError: its file cannot be read.
    """
    source: FileIO | VolumeStream
    if isinstance(host.pool, LocalPool):
        try:
            source = FileIO(host.pool.path(name), "r")
        except FileNotFoundError as error:
            raise GoneError(f"volume {name} is not there") from error
    else:
        source = VolumeStream(host, name)
    try:
        yield source
    finally:
        source.close()


def file_of(host: Host, name: str, work: Path) -> Path:
    """A file with a volume's content: its own, or else a copy that is downloaded.

    Args:
        host: the host.
        name: the volume.
        work: a directory for the copy.

    Raises:
        PoclabError: there is no such volume, or libvirt does not give it.
        OSError: the copy cannot be written.
    """
    if isinstance(host.pool, LocalPool):
        return Path(host.pool.path(name))
    target = below(work, name)
    size = host.pool.stat(name).size
    with opened(host, name) as source, target.open("xb", buffering=0) as file:
        done = 0
        while data := source.read(MIB):
            write_all(file.fileno(), data, done)
            done += len(data)
            events.progress("fetch", done, size)
    return target
