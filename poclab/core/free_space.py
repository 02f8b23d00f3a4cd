"""How much of a file system poclab may fill.

Running VMs write to the same file system as imports, commits and builds, and stop with an I/O
error when it is full. So nothing that poclab makes goes below a reserve.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poclab.core import paths
from poclab.core.errors import PoclabError
from poclab.core.units import GIB, format_size

# What stays free: enough for running VMs to write for a while, and for somebody to notice; on a
# small file system a part of it, since there 1 GiB would leave nothing to use.
_RESERVE, _SHARE = GIB, 20


@dataclass(frozen=True)
class Room:
    """A file system's room.

    Attributes:
        total: bytes it has.
        free: bytes that are free.
    """

    total: int
    free: int

    @property
    def reserve(self) -> int:
        """Bytes that stay free."""
        return min(_RESERVE, self.total // _SHARE)

    @property
    def left(self) -> int:
        """Bytes that may be filled."""
        return max(0, self.free - self.reserve)

    def refused(self, what: str, place: Path | str) -> PoclabError:
        """The error that there is no room for something in a place."""
        return PoclabError(
            f"there is no room for {what}",
            why=f"{place} has {format_size(self.free)} free, {format_size(self.reserve)} of it"
            " reserved for running VMs",
            fix=advice(place),
        )


def advice(place: Path | str) -> str:
    """Say how to get more room in a place: the pool, or where work is done beside it."""
    if paths.cache_dir().absolute() in (Path(place).absolute(), *Path(place).absolute().parents):
        return "make room there, or set XDG_CACHE_HOME to a directory with more"
    return "make room there with `poclab gc` or `poclab image rm`, or use another pool"


def of(directory: Path) -> Room:
    """The room of the file system that a directory is on."""
    usage = shutil.disk_usage(directory)
    return Room(usage.total, usage.free)


def check(directory: Path, what: str, *, needed: int = 1, place: Path | None = None) -> int:
    """Check that something fits.

    Args:
        directory: where it goes.
        what: what to call it in messages.
        needed: bytes it takes at least.
        place: what to call the directory in messages, instead.

    Returns:
        Bytes that may be filled.

    Raises:
        PoclabError: if there is less.
    """
    found = of(directory)
    if found.left < needed:
        raise found.refused(what, place or directory)
    return found.left


def watch(directory: Path, what: str, *, place: Path | None = None) -> Callable[[], None]:
    """Make the check to repeat while another program writes: others may fill the disk as well.

    What that raises ends the program (see `Runner.stream`).
    """

    def look() -> None:
        found = of(directory)
        if found.free < found.reserve:
            raise found.refused(what, place or directory)

    return look
