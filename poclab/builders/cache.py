"""The cache of image-builder as a program of this host: where it is, and how large.

image-builder runs osbuild as root with a store that stays (cacheDirForUid in cmd/image-builder of
image-builder 79.0.0); in a container it goes with the container.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from poclab.core.process import runner
from poclab.core.units import GIB

PROGRAM = "image-builder"
STORE = Path("/var/cache/image-builder/store")
# image-builder has osbuild keep that much (pkg/progress/command.go).
MOST = 20 * GIB
# What osbuild 191 counts itself (osbuild/util/fscache.py): a number of bytes in decimal.
_SIZE = "cache.size"
_DIGITS = 19


@dataclass(frozen=True)
class Cache:
    """A cache that is there.

    Attributes:
        path: its directory.
        size: bytes of the results in it, as osbuild counts them; None where that cannot be read.
    """

    path: Path
    size: int | None


def look() -> Cache | None:
    """Look for the cache of this host's image-builder; None without either."""
    if runner().which(PROGRAM) is None or not STORE.is_dir():
        return None
    return Cache(STORE, _size(STORE / _SIZE))


def _size(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, _DIGITS + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return None
    finally:
        os.close(fd)
    found = re.fullmatch(rb"([0-9]{1,%d})\n?" % _DIGITS, data)
    return int(found[1]) if found else None
