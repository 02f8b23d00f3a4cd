"""The storage pool: base disks, overlays, data disks and manifests, by name.

Two ways to the same pool. `LocalPool` is the fast one: the pool's directory is on this host
and writable, so files are renamed into place. `StreamPool` asks libvirt for everything; it
serves members of group libvirt, who cannot write the directory, and other hosts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from poclab.core.errors import PoclabError
from poclab.core.units import KIB, format_size
from poclab.model.version_volumes import LARGEST

STAGING = "tmp."
# What guests and poclab write is for its owner, whom libvirt makes QEMU's account while a guest
# runs on it. Many guests at once may run on a base, which is for QEMU's group as well.
PRIVATE_MODE = 0o600
BASE_MODE = 0o440
OWN_BASE_MODE = 0o400  # where QEMU runs as the owner
SMALL = LARGEST  # bytes of a volume that is read whole


@dataclass(frozen=True)
class VolumeStat:
    """What a volume takes.

    Attributes:
        size: bytes of the file, holes included.
        allocated: bytes it takes on the file system.
    """

    size: int
    allocated: int


Readers = Callable[[], int | None]
"""The ID of the group that QEMU reads bases with; None where it runs as whoever runs poclab."""


class Pool(Protocol):
    """Volumes by name: every way in takes names that `VolumeName` reads, and no others."""

    directory: str

    def names(self) -> list[str]:
        """All volumes, sorted."""

    def strays(self) -> list[str]:
        """Volumes whose names poclab does not give, sorted: they are left alone."""

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

    def digest(self, name: str, like: str) -> str | None:
        """The digest of a volume's content, or None where that would cross a network.

        Args:
            name: the volume.
            like: a digest or an algorithm: which kind of digest it is to be.

        Raises:
            PoclabError: if there is no such volume, or it cannot be read.
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


def abandoned(path: Path) -> bool:
    """Whether the process that made a staging name (`tmp.PID.…`) is gone, or it is an hour old."""
    pid = path.name.split(".")[1]
    if pid.isdigit():
        return not Path(f"/proc/{pid}").exists()
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime > 3600
    return False


def whole(name: str, data: bytes) -> bytes:
    """Return what was read of a small volume, at most `SMALL` bytes and one, when that is all.

    Raises:
        PoclabError: if there is more.
    """
    if len(data) > SMALL:
        raise PoclabError(
            f"volume {name} cannot be read",
            why=f"it is larger than a manifest can be ({format_size(SMALL)})",
            fix="put it back from a backup; `poclab doctor` lists damaged records",
        )
    return data


@contextmanager
def disk_errors(name: str) -> Iterator[None]:
    """Errors of the file system in words.

    Raises:
        PoclabError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise PoclabError(
            f"{name} cannot be written to the storage pool",
            why=f"{error.strerror or error}",
            fix="make room, or see to its permissions: `poclab doctor` shows both",
        ) from error


# What a qcow2 file takes at most that nothing was written to: its header and three tables, each a
# cluster of 64 KiB (docs/interop/qcow2.txt of QEMU).
_EMPTY = 4 * 64 * KIB


def written(pool: Pool, volume: str) -> int:
    """Bytes written to a qcow2 volume since it was made, to the nearest tables of its own.

    Raises:
        PoclabError: there is no such volume.
    """
    return max(0, pool.stat(volume).allocated - _EMPTY)
