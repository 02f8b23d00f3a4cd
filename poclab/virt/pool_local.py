"""The storage pool by its directory, which this process can write."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import libvirt

from poclab.core import events, hints
from poclab.core.errors import PoclabError
from poclab.core.files import sync
from poclab.disks.pool_disks import create_empty, create_overlay, resize
from poclab.disks.qcow2_header import virtual_size
from poclab.model import volumes
from poclab.model.volumes import Kind, checked
from poclab.virt.errors import GoneError
from poclab.virt.pool import (
    BASE_MODE,
    OWN_BASE_MODE,
    PRIVATE_MODE,
    SMALL,
    STAGING,
    Readers,
    VolumeStat,
    abandoned,
    disk_errors,
    whole,
)
from poclab.virt.pool_renames import Moves


class LocalPool(Moves):
    """A pool whose directory this process can write."""

    def __init__(self, pool: libvirt.virStoragePool, directory: str, readers: Readers) -> None:
        self._pool = pool
        self._readers = readers
        self.directory = directory
        self._root = Path(directory)

    def _all(self) -> list[str]:
        with os.scandir(self._root) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]

    def _file(self, name: str) -> Path:
        """The file of a volume: every access by name goes through here.

        Raises:
            PoclabError: the name is none that poclab gives.
        """
        return self._root / checked(name)

    def _own(self, name: str) -> Path:
        """The file of a volume for a program that would follow a link.

        Raises:
            PoclabError: it is a link, or the name is none that poclab gives.
        """
        path = self._file(name)
        if path.is_symlink():
            raise PoclabError(
                f"volume {name} is a link to another file",
                why="poclab makes no links, and reads and writes through none",
                fix=f"remove it: {hints.command('rm', str(path))}",
            )
        return path

    def _there(self, name: str) -> bool:
        return os.path.lexists(self._file(name))

    def path(self, name: str) -> str:
        """See `Pool`."""
        return str(self._file(name))

    def stat(self, name: str) -> VolumeStat:
        """See `Pool`."""
        try:
            found = self._file(name).lstat()
        except FileNotFoundError as error:
            raise GoneError(f"volume {name} is not there") from error
        return VolumeStat(found.st_size, found.st_blocks * 512)  # st_blocks counts 512 bytes

    @contextmanager
    def _reading(self, name: str) -> Iterator[BinaryIO]:
        """Open a volume to be read: neither a link to somebody's file nor a FIFO or the like.

        Raises:
            PoclabError: if there is no such volume, or it cannot be read.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(self._file(name), flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise PoclabError(
                        f"volume {name} cannot be read",
                        why="it is not a regular file",
                        fix=f"look at what it is: {hints.command('ls', '-ld', self.path(name))}",
                    )
                yield file
        except FileNotFoundError as error:
            raise GoneError(f"volume {name} is not there") from error
        except OSError as error:
            raise PoclabError(f"volume {name} cannot be read", why=str(error.strerror)) from error

    def read(self, name: str) -> bytes:
        """See `Pool`."""
        with self._reading(name) as file:
            return whole(name, file.read(SMALL + 1))

    def digest(self, name: str, like: str) -> str:
        """See `Pool`."""
        from poclab.disks.digest import open_digest

        with self._reading(name) as file:
            return open_digest(file.fileno(), like)

    def write(self, name: str, data: bytes) -> None:
        """See `Pool`."""
        with (
            disk_errors(name),
            tempfile.NamedTemporaryFile(
                dir=self._root, prefix=f"{STAGING}{os.getpid()}.", delete=False
            ) as file,
        ):
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), PRIVATE_MODE)
                self._publish(Path(file.name), name)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    rewrite = write  # a file is renamed into place

    def adopt(self, name: str, file: Path) -> None:
        """See `Pool`."""
        with disk_errors(name):
            if file.stat().st_dev != self._root.stat().st_dev:
                with self.staging() as directory:
                    copy = directory / "disk"
                    shutil.copyfile(file, copy)  # what it makes nobody else can reach yet
                    self.adopt(name, copy)
                file.unlink()
                return
            sync(file)
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                close_base(fd, self._readers())
            finally:
                os.close(fd)
            self._publish(file, name)

    def overlay(self, name: str, base: str, size: int) -> None:
        """See `Pool`."""
        with disk_errors(name):
            create_overlay(self._file(name), self._own(base), "qcow2", size)

    def blank(self, name: str, size: int) -> None:
        """See `Pool`."""
        # A data disk's name is known beforehand: half-made, it would be taken for the whole one.
        target = self._file(name)
        self._make_way(name)
        with disk_errors(name), self.staging() as directory:
            made = directory / name
            create_empty(made, size)
            made.replace(target)

    def grow(self, name: str, size: int) -> None:
        """See `Pool`."""
        with disk_errors(name):
            resize(self._own(name), size)

    def rename(self, old: str, new: str) -> None:
        """See `Pool`."""
        self._begin_anew(old)
        with disk_errors(new):
            self._file(old).replace(self._file(new))

    def capacity(self, name: str) -> int:
        """See `Pool`."""
        return virtual_size(self._file(name))

    def _drop(self, name: str) -> None:
        with disk_errors(name), contextlib.suppress(IsADirectoryError):  # nothing of poclab's
            self._file(name).unlink(missing_ok=True)

    def free(self) -> int:
        """See `Pool`."""
        return shutil.disk_usage(self._root).free

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Pool`."""
        with disk_errors("a work directory"):
            directory = Path(tempfile.mkdtemp(dir=self._root, prefix=f"{STAGING}{os.getpid()}."))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """See `Pool`."""
        with os.scandir(self._root) as entries:
            found = volumes.known((entry.name for entry in entries), Kind.STAGING)
            return [str(name) for name in found if abandoned(self._root / str(name))]

    def sweep(self) -> None:
        """See `Pool`."""
        for name in self.leftovers():
            path = self._root / name
            events.debug(f"removing {path}, left by an interrupted command")
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._forget_ended()

    def refresh(self) -> None:
        """Have libvirt's own listings show what was done behind its back; best effort."""
        with contextlib.suppress(libvirt.libvirtError):
            self._pool.refresh(0)

    def _publish(self, file: Path, name: str) -> None:
        file.replace(self._file(name))
        sync(self._root)


def close_base(fd: int, readers: int | None) -> None:
    """Give a base its group and mode: nobody writes to it, and only QEMU reads it.

    Args:
        fd: the file.
        readers: the ID of QEMU's group, or None where QEMU runs as the owner.

    Raises:
        OSError: if they cannot be set.
    """
    if readers is not None:
        os.fchown(fd, -1, readers)
    os.fchmod(fd, OWN_BASE_MODE if readers is None else BASE_MODE)
