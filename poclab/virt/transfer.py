"""Volumes as files of this machine, whichever way to the pool there is."""

from __future__ import annotations

from pathlib import Path

import libvirt

from poclab import events
from poclab.sparse import write_all
from poclab.virt.errors import libvirt_errors
from poclab.virt.host import Host
from poclab.virt.pool import LocalPool


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
    target = work / name
    with libvirt_errors(f"volume {name} cannot be read"), target.open("xb", buffering=0) as file:
        volume = host.conn.storageVolLookupByPath(host.pool.path(name))
        size = int(volume.info()[2])
        stream = host.conn.newStream(0)
        volume.download(stream, 0, 0, 0)  # 0 bytes is all
        done = 0

        def keep(_stream: libvirt.virStream, data: bytes, descriptor: int) -> int:
            nonlocal done
            write_all(descriptor, data, done)
            done += len(data)
            events.progress("fetch", done, size)
            return len(data)

        stream.recvAll(keep, file.fileno())
        stream.finish()
    return target
