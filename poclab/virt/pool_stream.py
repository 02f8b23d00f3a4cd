"""The storage pool through libvirt alone: for other hosts, and users who cannot write it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import libvirt

from poclab.core import events, paths
from poclab.core.errors import PoclabError
from poclab.core.free_space import Room
from poclab.core.plaintext import shown
from poclab.core.units import KIB, format_size
from poclab.definitions.xml import volume_xml
from poclab.model.volumes import checked
from poclab.virt.errors import GoneError, libvirt_errors
from poclab.virt.pool import (
    BASE_MODE,
    OWN_BASE_MODE,
    PRIVATE_MODE,
    SMALL,
    STAGING,
    Readers,
    VolumeStat,
    abandoned,
    whole,
)
from poclab.virt.pool_renames import Moves, marker

_PIECE = 256 * KIB  # bytes; a message of libvirt's takes a little less (virnetprotocol.x)


class StreamPool(Moves):
    """A pool reached through libvirt alone."""

    def __init__(
        self,
        conn: libvirt.virConnect,
        pool: libvirt.virStoragePool,
        directory: str,
        readers: Readers,
    ) -> None:
        self._conn = conn
        self._pool = pool
        self._readers = readers
        self.directory = directory
        self.refresh()

    def _all(self) -> list[str]:
        with libvirt_errors("the storage pool cannot be listed"):
            found = []
            for volume in self._pool.listAllVolumes(0):
                with suppress(UnicodeDecodeError):  # a stray's: libvirt-python cannot say its name
                    found.append(volume.name())
            return found

    def _there(self, name: str) -> bool:
        with suppress(GoneError), libvirt_errors(f"volume {name} is not there"):
            self._volume(name)
            return True
        return False

    def path(self, name: str) -> str:
        """See `Pool`."""
        return f"{self.directory}/{checked(name)}"

    def stat(self, name: str) -> VolumeStat:
        """See `Pool`."""
        with libvirt_errors(f"volume {name} is not there"):
            volume = self._volume(name)
            # The flag puts the file's size where else its allocation is.
            physical = volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2]
            return VolumeStat(int(physical), int(volume.info()[2]))

    def allocated(self, name: str) -> int:
        """Bytes that a volume takes on the file system; of strays too, which are only listed.

        Raises:
            PoclabError: there is no such volume.
        """
        with libvirt_errors(f"volume {shown(name, 255)} is not there"):
            return int(self._pool.storageVolLookupByName(name).info()[2])

    def read(self, name: str) -> bytes:
        """See `Pool`."""
        with libvirt_errors(f"volume {name} cannot be read"):
            data = b"".join(self._pieces(name, SMALL + 1))
        return whole(name, data)

    def _pieces(self, name: str, most: int) -> Iterator[bytes]:
        """Take a volume's content; each piece has a deadline of its own (`remote`).

        Args:
            name: the volume.
            most: bytes at most; 0 is all.
        """
        volume = self._volume(name)
        stream = self._conn.newStream(0)
        volume.download(stream, 0, most, 0)
        try:
            while data := stream.recv(_PIECE):
                yield data
        except BaseException:
            with suppress(libvirt.libvirtError, PoclabError):
                stream.abort()
            raise
        stream.finish()

    def digest(self, name: str, like: str) -> str | None:
        """See `Pool`."""
        if urlsplit(self._conn.getURI()).netloc:
            return None
        from poclab.disks.digest import Digester

        digester = Digester(like)

        with libvirt_errors(f"volume {name} cannot be read"):
            for data in self._pieces(name, 0):
                digester.update(data)
        return str(digester)

    def write(self, name: str, data: bytes) -> None:
        """See `Pool`."""
        self.delete(name)
        with libvirt_errors(f"volume {name} cannot be written"):
            self._fill(self._create(name, "raw", len(data)), data)

    def rewrite(self, name: str, data: bytes) -> None:
        """See `Pool`; an upload cuts nothing off, so blanks cover the rest of what was there."""
        with libvirt_errors(f"volume {name} cannot be written"):
            self._fill(self._volume(name), data.ljust(len(self.read(name))))

    def _fill(self, volume: libvirt.virStorageVol, data: bytes) -> None:
        stream = self._conn.newStream(0)
        volume.upload(stream, 0, len(data), 0)
        self._send(stream, BytesIO(data), len(data))

    def _send(self, stream: libvirt.virStream, content: BinaryIO, size: int) -> None:
        """Send all of something; each piece has a deadline of its own (`remote`)."""
        sent = 0
        try:
            while piece := memoryview(content.read(_PIECE)):
                while piece:
                    count = stream.send(bytes(piece))
                    piece, sent = piece[count:], sent + count
                if size > SMALL:
                    events.progress("storing the disk", sent, size)
        except BaseException:
            with suppress(libvirt.libvirtError, PoclabError):
                stream.abort()
            raise
        stream.finish()

    def adopt(self, name: str, file: Path) -> None:
        """See `Pool`."""
        self.delete(name)
        size = file.stat().st_size
        self._check_room(size)
        with libvirt_errors(f"volume {name} cannot be written"), file.open("rb") as content:
            mode, group = self._base_access()
            volume = self._create(name, "raw", size, mode=mode, group=group)
            stream = self._conn.newStream(0)
            volume.upload(stream, 0, size, 0)
            self._send(stream, content, size)
        file.unlink()
        self.refresh()  # else libvirt takes the disk for a raw one until it looks by itself

    def _check_room(self, size: int) -> None:
        """Check that a disk fits, so that running VMs do not meet a full file system.

        Raises:
            PoclabError: if it does not.
        """
        with libvirt_errors("the storage pool does not answer"):
            _, total, _, free = self._pool.info()
        found = Room(total, free)
        if found.left < size:
            raise found.refused(f"a disk of {format_size(size)}", self.directory)

    def overlay(self, name: str, base: str, size: int) -> None:
        """See `Pool`."""
        with libvirt_errors(f"the overlay {name} cannot be made"):
            self._create(name, "qcow2", size, backing=self.path(base))

    def blank(self, name: str, size: int) -> None:
        """See `Pool`."""
        self._make_way(name)
        with libvirt_errors(f"the disk {name} cannot be made"):
            self._create(name, "qcow2", size)

    def grow(self, name: str, size: int) -> None:
        """See `Pool`."""
        with libvirt_errors(f"the disk {name} cannot be enlarged"):
            self._volume(name).resize(size, 0)

    def rename(self, old: str, new: str) -> None:
        """See `Pool`; libvirt knows no renaming, so the volume is copied on the host."""
        size = self.capacity(old)
        self._begin_anew(old)
        events.step("note the new name", volume=old)
        self.write(marker(old), new.encode())
        try:
            events.step("copy", volume=new)
            self._copy(old, new, size)
        except PoclabError:
            self.undo(old)
            raise
        events.step("delete the old name", volume=old)
        self._drop(old)
        events.step("forget the new name", volume=old)
        self._drop(marker(old))

    def _copy(self, old: str, new: str, size: int) -> None:
        self._drop(new)
        with libvirt_errors(f"the disk {old} cannot be renamed"):
            source = self._volume(old)
            made = self._pool.createXMLFrom(volume_xml(new, "qcow2", size), source, 0)
            # qemu-img convert leaves the data to the page cache; resize has it on the disk, also
            # when the size is as before.
            made.resize(size, 0)

    def capacity(self, name: str) -> int:
        """See `Pool`."""
        with libvirt_errors(f"volume {name} is not there"):
            return int(self._volume(name).info()[1])

    def _drop(self, name: str) -> None:
        try:
            volume = self._volume(name)
            if volume.info()[0] != libvirt.VIR_STORAGE_VOL_DIR:  # that is nothing of poclab's
                volume.delete(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise PoclabError(f"volume {name} cannot be deleted", why=str(error)) from error

    def free(self) -> int:
        """See `Pool`."""
        with libvirt_errors("the storage pool does not answer"):
            return int(self._pool.info()[3])

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Pool`."""
        parent = paths.private_dir(paths.cache_dir() / "staging")
        directory = Path(tempfile.mkdtemp(dir=parent, prefix=f"{STAGING}{os.getpid()}."))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """See `Pool`."""
        parent = paths.cache_dir() / "staging"
        return [str(path) for path in parent.glob(f"{STAGING}*") if abandoned(path)]

    def sweep(self) -> None:
        """See `Pool`."""
        for name in self.leftovers():
            shutil.rmtree(name, ignore_errors=True)
        self._forget_ended()

    def refresh(self) -> None:
        """Have libvirt look at the directory again.

        Raises:
            PoclabError: the pool stays busy for 10 s.
        """
        deadline = time.monotonic() + 10
        while True:
            try:
                self._pool.refresh(0)
            except libvirt.libvirtError as error:
                # "pool has asynchronous jobs running": another client writes a volume.
                if "asynchronous jobs" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                raise PoclabError("the storage pool does not answer", why=str(error)) from error
            return

    def _base_access(self) -> tuple[int, int | None]:
        """The mode and group of a base: it never changes; QEMU opens it read-only.

        A daemon without root could not fill a file that it may not write itself, and no call of
        libvirt's changes a mode afterwards.
        """
        if urlsplit(self._conn.getURI()).path.endswith("/session"):
            return PRIVATE_MODE, None
        readers = self._readers()
        return (OWN_BASE_MODE, None) if readers is None else (BASE_MODE, readers)

    def _volume(self, name: str) -> libvirt.virStorageVol:
        return self._pool.storageVolLookupByName(checked(name))

    def _create(
        self,
        name: str,
        kind: str,
        size: int,
        *,
        backing: str = "",
        mode: int = PRIVATE_MODE,
        group: int | None = None,
    ) -> libvirt.virStorageVol:
        xml = volume_xml(checked(name), kind, size, backing=backing, mode=mode, group=group)
        return self._pool.createXML(xml, 0)
