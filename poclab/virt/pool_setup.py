"""Opening the storage pool of a host, and making it the first time.

Making it takes several calls of libvirt's, and in between the pool is stopped: a lock keeps two
commands of a host from doing that at once. A pool that is whole is opened without a lock.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import libvirt

from poclab.core import events, paths
from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.definitions.xml import closed_pool_xml, pool_directory, pool_xml
from poclab.virt.errors import libvirt_errors
from poclab.virt.pool import Readers
from poclab.virt.pool_local import LocalPool
from poclab.virt.pool_stream import StreamPool
from poclab.virt.remote import StuckError

POOL = "poclab"
MARKER = "poclab.json"  # written last: a pool that has it is whole
SYSTEM_POOL = "/var/lib/libvirt/images/poclab"  # below a directory SELinux and AppArmor know
_PATIENCE = 60.0  # seconds for another command to make the pool, which takes less than one

_here = threading.Lock()  # threads of this process: a lock that it holds is none to wait for


def directory_access(readers: int | None) -> tuple[int, int | None]:
    """Give the mode and the group's ID that the pool's directory should have.

    Args:
        readers: the ID of the group that QEMU runs with, None where it runs as we do.
    """
    return (0o700, None) if readers is None else (0o710, readers)


@dataclass(frozen=True)
class PoolSetup:
    """Opens the pool of one connection.

    Attributes:
        conn: the connection.
        uri: its URI.
        session: whether the daemon is a user's own.
        local: whether the daemon runs on this host.
        readers: tells the group that QEMU runs with.
    """

    conn: libvirt.virConnect
    uri: str
    session: bool
    local: bool
    readers: Readers

    def opened(self) -> LocalPool | StreamPool:
        """Open the pool; make it if it is missing, start it if it is off.

        Raises:
            PoclabError: if it cannot be made or started, or a pool of that name is not poclab's.
        """
        if found := self._whole():
            return found
        from poclab.core import locks  # only the first command on a host needs it

        with (
            _here,
            locks.hold("pool", uri=self.uri, doing="poclab", wait=_PATIENCE, kind="storage"),
        ):
            return self._whole() or self._prepared()

    def _whole(self) -> LocalPool | StreamPool | None:
        """The pool if nothing is left to do to it."""
        pool = self._lookup()
        if pool is None:
            return None
        try:
            with libvirt_errors(f"the storage pool {POOL} cannot be opened"):
                if not pool.isActive():
                    return None
            found = self._found(pool)
            return found if MARKER in found.names() else None
        except StuckError:
            raise
        except PoclabError:
            return None  # another command stopped it just now, to make it private

    def _prepared(self) -> LocalPool | StreamPool:
        pool = self._lookup() or self._made()
        with libvirt_errors(f"the storage pool {POOL} cannot be started"):
            if not pool.isActive():
                _start(pool, libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
        found = self._found(pool)
        names = found.names()
        if MARKER not in names:
            names += found.strays()
            if names:
                others = ", ".join(shown(name, 255) for name in names[:3])
                raise PoclabError(
                    f"the storage pool {POOL} is not poclab's",
                    why=f"{found.directory} holds other volumes: {others}",
                    fix="rename that pool: virsh pool-edit, or use another host",
                )
            if isinstance(found, StreamPool) or not any(Path(found.directory).iterdir()):
                self._close_directory(pool)
            found.write(MARKER, b'{"format": 1}\n')
        return found

    def _found(self, pool: libvirt.virStoragePool) -> LocalPool | StreamPool:
        with libvirt_errors(f"the storage pool {POOL} cannot be opened"):
            directory = pool_directory(pool.XMLDesc(0))
        if self._writable(directory):
            return LocalPool(pool, directory, self.readers)
        return StreamPool(self.conn, pool, directory, self.readers)

    def _writable(self, directory: str) -> bool:
        """Whether the pool's files can be made here.

        On a system only by root: libvirt gives them to QEMU's account while a guest runs, and
        nobody else could read them then.
        """
        if not self.local or not (self.session or os.geteuid() == 0):
            return False
        return os.access(directory, os.W_OK | os.X_OK)

    def _lookup(self) -> libvirt.virStoragePool | None:
        try:
            return self.conn.storagePoolLookupByName(POOL)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise PoclabError("the storage pool cannot be opened", why=str(error)) from error
        return None

    def _made(self) -> libvirt.virStoragePool:
        default = str(paths.data_dir() / "pool") if self.session else SYSTEM_POOL
        directory = os.environ.get("POCLAB_POOL_DIR") or default
        if self.session and self.local:
            paths.private_dir(Path(directory))
        events.step("pool", directory=directory)
        with libvirt_errors(f"the storage pool {POOL} cannot be made in {directory}"):
            try:
                pool = self.conn.storagePoolDefineXML(pool_xml(POOL, directory), 0)
                pool.build(0)
                pool.setAutostart(1)
            except libvirt.libvirtError:
                # Of a host that is far away each user has locks of their own.
                found = self._lookup()
                if found is None or not found.isActive():
                    raise
                return found
            return pool

    def _close_directory(self, pool: libvirt.virStoragePool) -> None:
        """Let nobody but its owner and QEMU into the directory of a pool that is empty so far."""
        events.step("close the pool's directory")
        with libvirt_errors(f"the directory of storage pool {POOL} cannot be made private"):
            xml = closed_pool_xml(pool.XMLDesc(0), *directory_access(self.readers()))
            pool.destroy()  # stops it; only a pool that is stopped can be built
            try:
                self.conn.storagePoolDefineXML(xml, 0).build(0)
            finally:
                _start(pool, 0)


def _start(pool: libvirt.virStoragePool, flags: int) -> None:
    try:
        pool.create(flags)
    except libvirt.libvirtError:
        if not pool.isActive():  # otherwise somebody was faster
            raise
