"""Where the volumes of a pool are on its disk, as far as it can be known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from poclab.disks import extents
from poclab.disks.extents import Layout, Range
from poclab.virt.errors import GoneError
from poclab.virt.pool_local import LocalPool
from poclab.virt.pool_stream import StreamPool

_DISK = 2**64  # bytes that no disk reaches: what has no place gets one beyond


@dataclass(frozen=True)
class Places:
    """What volumes take.

    Attributes:
        ranges: the places of each, none twice; of a volume whose places are not known, ones
            that no other volume has.
        unknown: the volumes whose places are not known.
    """

    ranges: Mapping[str, list[Range]]
    unknown: frozenset[str]

    def of(self, names: Iterable[str]) -> list[Range]:
        """The places of some volumes, none twice; those that are not there have none."""
        found = [self.ranges[name] for name in names if name in self.ranges]
        return found[0] if len(found) == 1 else extents.union(chain.from_iterable(found))

    def size(self, name: str) -> int:
        """Bytes that a volume takes; 0 when it is not there."""
        return sum(end - begin for begin, end in self.ranges.get(name, ()))


def find(pool: LocalPool | StreamPool, names: Iterable[str]) -> Places:
    """Look where volumes are.

    Only files of this host can be looked at; of others it is known how much they take.

    Args:
        pool: their pool.
        names: volumes, or what the pool calls leftovers.
    """
    ranges: dict[str, list[Range]] = {}
    unknown: set[str] = set()
    for number, name in enumerate(names, 1):
        layouts = list(_layouts(pool, name))
        beyond = number * _DISK
        known = [each for layout in layouts for each in layout.ranges]
        elsewhere = sum(layout.elsewhere for layout in layouts)
        ranges[name] = extents.union([*known, (beyond, beyond + elsewhere)])
        if not all(layout.known for layout in layouts):
            unknown.add(name)
    return Places(ranges, frozenset(unknown))


def _layouts(pool: LocalPool | StreamPool, name: str) -> Iterator[Layout]:
    path = Path(pool.directory, name)  # a leftover may be an absolute path, of this host
    with suppress(FileNotFoundError, GoneError):  # it went away meanwhile
        if isinstance(pool, StreamPool) and not Path(name).is_absolute():
            yield Layout((), pool.allocated(name), known=False)
        elif path.is_dir():
            for directory, _, files in os.walk(path):
                for file in files:
                    with suppress(FileNotFoundError):
                        yield extents.of_file(Path(directory, file))
        else:
            yield extents.of_file(path)
