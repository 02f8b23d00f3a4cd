"""The storage pool: base disks, overlays, data disks and manifests, by name.

Two ways to the same pool. `LocalPool` is the fast one: the pool's directory is on this host
and writable, so files are renamed into place. `StreamPool` asks libvirt for everything; it
serves members of group libvirt, who cannot write the directory, and other hosts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import libvirt

from poclab import config, events
from poclab.disk import create_empty, create_overlay, resize, virtual_size
from poclab.errors import PoclabError
from poclab.files import sync
from poclab.virt.errors import GoneError, libvirt_errors
from poclab.virt.moves import MARK, Moves
from poclab.virt.xml import volume_xml

STAGING = "tmp."
_SMALL = 4 * 1024 * 1024  # more than any manifest; a larger one is not read


@dataclass(frozen=True)
class VolumeStat:
    """What a volume takes.

    Attributes:
        size: bytes of the file, holes included.
        allocated: bytes it takes on the file system.
    """

    size: int
    allocated: int


class Pool(Protocol):
    """Volumes by name; names never hold a slash."""

    directory: str

    def names(self) -> list[str]:
        """All volumes, sorted."""

    def path(self, name: str) -> str:
        """The volume's file, on the host the pool is on."""

    def stat(self, name: str) -> VolumeStat:
        """What the volume takes.

        Raises:
            PoclabError: there is no such volume.
        """

    def read(self, name: str) -> bytes:
        """A small volume's content.

        Raises:
            PoclabError: there is no such volume, or it is larger than 4 MiB.
        """

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a small volume."""

    def rewrite(self, name: str, data: bytes) -> None:
        """Replace a small volume in one go; blanks after the data do not matter to readers."""

    def adopt(self, name: str, file: Path) -> None:
        """Take a file of this host into the pool as a read-only volume; the file is used up."""

    def overlay(self, name: str, base: str, size: int) -> None:
        """Make a qcow2 overlay of `size` bytes on another volume."""

    def blank(self, name: str, size: int) -> None:
        """Make an empty qcow2 volume of `size` bytes."""

    def grow(self, name: str, size: int) -> None:
        """Enlarge a qcow2 volume to `size` bytes; it must not be in use."""

    def rename(self, old: str, new: str) -> None:
        """Give a qcow2 volume another name; it must not be in use.

        Whenever it is cut short, one of the two names is there and whole, and counts.

        Raises:
            PoclabError: there is no such volume, or no room for a copy.
        """

    def moves(self) -> dict[str, str]:
        """Renames that were cut short: the new name, which does not count, by the old one."""

    def undo(self, old: str) -> None:
        """Forget a rename that was cut short; nobody may be at it any more."""

    def capacity(self, name: str) -> int:
        """Bytes a guest sees of a qcow2 volume."""

    def delete(self, name: str) -> None:
        """Delete a volume; none of that name is fine."""

    def free(self) -> int:
        """Bytes free on the pool's file system."""

    def staging(self) -> contextlib.AbstractContextManager[Path]:
        """A fresh private directory for files to adopt, removed afterwards."""

    def leftovers(self) -> list[str]:
        """Staging directories and files that an interrupted command left."""

    def sweep(self) -> None:
        """Remove the leftovers that nobody uses any more."""


class LocalPool(Moves):
    """A pool whose directory this process can write."""

    def __init__(self, pool: libvirt.virStoragePool, directory: str) -> None:
        self._pool = pool
        self.directory = directory
        self._root = Path(directory)

    def _all(self) -> list[str]:
        with os.scandir(self._root) as entries:
            return [
                entry.name
                for entry in entries
                if entry.is_file(follow_symlinks=False) and not entry.name.startswith(STAGING)
            ]

    def _there(self, name: str) -> bool:
        return (self._root / name).exists()

    def path(self, name: str) -> str:
        """See `Pool`."""
        return str(self._root / name)

    def stat(self, name: str) -> VolumeStat:
        """See `Pool`."""
        try:
            found = (self._root / name).stat()
        except FileNotFoundError as error:
            raise GoneError(f"volume {name} is not there") from error
        return VolumeStat(found.st_size, found.st_blocks * 512)  # st_blocks counts 512 bytes

    def read(self, name: str) -> bytes:
        """See `Pool`."""
        try:
            with (self._root / name).open("rb") as file:
                data = file.read(_SMALL + 1)
        except FileNotFoundError as error:
            raise GoneError(f"volume {name} is not there") from error
        except OSError as error:
            raise PoclabError(f"volume {name} cannot be read", why=str(error.strerror)) from error
        if len(data) > _SMALL:
            raise PoclabError(f"volume {name} is larger than a manifest can be")
        return data

    def write(self, name: str, data: bytes) -> None:
        """See `Pool`."""
        with (
            _disk_errors(name),
            tempfile.NamedTemporaryFile(
                dir=self._root, prefix=f"{STAGING}{os.getpid()}.", delete=False
            ) as file,
        ):
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                self._publish(Path(file.name), name)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    rewrite = write  # a file is renamed into place

    def adopt(self, name: str, file: Path) -> None:
        """See `Pool`."""
        with _disk_errors(name):
            if file.stat().st_dev != self._root.stat().st_dev:
                with self.staging() as directory:
                    copy = directory / "disk"
                    shutil.copyfile(file, copy)
                    self.adopt(name, copy)
                file.unlink()
                return
            sync(file)
            file.chmod(0o444)  # a base never changes; QEMU opens it read-only
            self._publish(file, name)

    def overlay(self, name: str, base: str, size: int) -> None:
        """See `Pool`."""
        with _disk_errors(name):
            create_overlay(self._root / name, self._root / base, "qcow2", size)

    def blank(self, name: str, size: int) -> None:
        """See `Pool`."""
        # A data disk's name is known beforehand: half-made, it would be taken for the whole one.
        self._make_way(name)
        with _disk_errors(name), self.staging() as directory:
            made = directory / name
            create_empty(made, size)
            made.replace(self._root / name)

    def grow(self, name: str, size: int) -> None:
        """See `Pool`."""
        with _disk_errors(name):
            resize(self._root / name, size)

    def rename(self, old: str, new: str) -> None:
        """See `Pool`."""
        self._begin_anew(old)
        with _disk_errors(new):
            (self._root / old).replace(self._root / new)

    def capacity(self, name: str) -> int:
        """See `Pool`."""
        return virtual_size(self._root / name)

    def _drop(self, name: str) -> None:
        with _disk_errors(name):
            (self._root / name).unlink(missing_ok=True)

    def free(self) -> int:
        """See `Pool`."""
        return shutil.disk_usage(self._root).free

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Pool`."""
        with _disk_errors("a work directory"):
            directory = Path(tempfile.mkdtemp(dir=self._root, prefix=f"{STAGING}{os.getpid()}."))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """See `Pool`."""
        return [path.name for path in self._root.glob(f"{STAGING}*") if _abandoned(path)]

    def sweep(self) -> None:
        """See `Pool`."""
        for name in self.leftovers():
            path = self._root / name
            events.debug(f"removing {path}, left by an interrupted command")
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._forget_ended()

    def refresh(self) -> None:
        """Have libvirt's own listings show what was done behind its back; best effort."""
        with contextlib.suppress(libvirt.libvirtError):
            self._pool.refresh(0)

    def _publish(self, file: Path, name: str) -> None:
        file.replace(self._root / name)
        sync(self._root)


class StreamPool(Moves):
    """A pool reached through libvirt alone."""

    def __init__(self, conn: libvirt.virConnect, pool: libvirt.virStoragePool, directory: str):
        self._conn = conn
        self._pool = pool
        self.directory = directory
        self.refresh()

    def _all(self) -> list[str]:
        with libvirt_errors("the storage pool cannot be listed"):
            return [volume.name() for volume in self._pool.listAllVolumes(0)]

    def _there(self, name: str) -> bool:
        with suppress(GoneError), libvirt_errors(f"volume {name} is not there"):
            self._volume(name)
            return True
        return False

    def path(self, name: str) -> str:
        """See `Pool`."""
        return f"{self.directory}/{name}"

    def stat(self, name: str) -> VolumeStat:
        """See `Pool`."""
        with libvirt_errors(f"volume {name} is not there"):
            volume = self._volume(name)
            # The flag puts the file's size where else its allocation is.
            physical = volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2]
            return VolumeStat(int(physical), int(volume.info()[2]))

    def read(self, name: str) -> bytes:
        """See `Pool`."""
        with libvirt_errors(f"volume {name} cannot be read"):
            chunks: list[bytes] = []
            stream = self._conn.newStream(0)
            self._volume(name).download(stream, 0, _SMALL, 0)

            def keep(_stream: libvirt.virStream, data: bytes, _opaque: object) -> int:
                chunks.append(data)
                return len(data)

            stream.recvAll(keep, None)
            stream.finish()
            return b"".join(chunks)

    def write(self, name: str, data: bytes) -> None:
        """See `Pool`."""
        self.delete(name)
        with libvirt_errors(f"volume {name} cannot be written"):
            self._fill(self._create(name, "raw", len(data), mode="0644"), data)

    def rewrite(self, name: str, data: bytes) -> None:
        """See `Pool`; an upload cuts nothing off, so blanks cover the rest of what was there."""
        with libvirt_errors(f"volume {name} cannot be written"):
            self._fill(self._volume(name), data.ljust(len(self.read(name))))

    def _fill(self, volume: libvirt.virStorageVol, data: bytes) -> None:
        stream = self._conn.newStream(0)
        volume.upload(stream, 0, len(data), 0)
        stream.send(data) if data else None
        stream.finish()

    def adopt(self, name: str, file: Path) -> None:
        """See `Pool`."""
        self.delete(name)
        size = file.stat().st_size
        with libvirt_errors(f"volume {name} cannot be written"), file.open("rb") as content:
            volume = self._create(name, "raw", size, mode=self._base_mode())
            stream = self._conn.newStream(0)
            volume.upload(stream, 0, size, 0)
            sent = 0

            def chunk(_stream: libvirt.virStream, count: int, _opaque: object) -> bytes:
                nonlocal sent
                data = content.read(count)
                sent += len(data)
                events.progress("storing the disk", sent, size)
                return data

            stream.sendAll(chunk, None)
            stream.finish()
        file.unlink()
        self.refresh()  # else libvirt takes the disk for a raw one until it looks by itself

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
        self.write(MARK + old, new.encode())
        try:
            events.step("copy", volume=new)
            self._copy(old, new, size)
        except PoclabError:
            self.undo(old)
            raise
        events.step("delete the old name", volume=old)
        self._drop(old)
        events.step("forget the new name", volume=old)
        self._drop(MARK + old)

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
            self._volume(name).delete(0)
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
        parent = config.private_dir(config.cache_dir() / "staging")
        directory = Path(tempfile.mkdtemp(dir=parent, prefix=f"{STAGING}{os.getpid()}."))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """See `Pool`."""
        parent = config.cache_dir() / "staging"
        return [str(path) for path in parent.glob(f"{STAGING}*") if _abandoned(path)]

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

    def _base_mode(self) -> str:
        """The mode of a base: it never changes; QEMU opens it read-only.

        A daemon without root could not fill a file that it may not write itself, and no call of
        libvirt's changes a mode afterwards.
        """
        return "0644" if urlsplit(self._conn.getURI()).path.endswith("/session") else "0444"

    def _volume(self, name: str) -> libvirt.virStorageVol:
        return self._pool.storageVolLookupByName(name)

    def _create(
        self, name: str, kind: str, size: int, *, backing: str = "", mode: str = "0600"
    ) -> libvirt.virStorageVol:
        return self._pool.createXML(volume_xml(name, kind, size, backing=backing, mode=mode), 0)


def _abandoned(path: Path) -> bool:
    """Whether the process that made a staging name (`tmp.PID.…`) is gone, or it is an hour old."""
    pid = path.name.split(".")[1]
    if pid.isdigit():
        return not Path(f"/proc/{pid}").exists()
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > 3600
    return False


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PoclabError(
            f"{name} cannot be written to the storage pool",
            why=f"{error.strerror or error}",
            fix="make room, or see to its permissions: `poclab doctor` shows both",
        ) from error
