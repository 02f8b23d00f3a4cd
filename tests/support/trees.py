"""Disks of one tree that changes, and what a file system says it has in use."""

from __future__ import annotations

import random
import time
from pathlib import Path

from poclab.disks.fingerprints import BLOCK
from tests.support import labs
from tests.support.hosts import Host
from tests.support.labs import MIB

SIZE = 24 * MIB


def trees(host: Host, name: str, versions: int = 3) -> list[Path]:
    """Raw disks of one tree that changes: each begins with more, so all else is elsewhere."""
    rest = random.Random(name)
    body = rest.randbytes(SIZE - 2 * MIB)
    found = []
    for number in range(versions):
        path = host.scratch / f"{name}{number + 1}.raw"
        inserted = rest.randbytes(64 * BLOCK)
        body = body[: MIB * (number + 1)] + inserted + body[MIB * (number + 1) : -len(inserted)]
        path.write_bytes(labs.IDLE.ljust(MIB, b"\0") + body + bytes(MIB))
        found.append(host.give(path))
    return found


def used(host: Host) -> int:
    """Bytes that are in use on the pool's file system, by itself."""
    code = (
        "import os, sys; os.sync(); s = os.statvfs(sys.argv[1]); "
        "print((s.f_blocks - s.f_bfree) * s.f_frsize)"
    )
    return int(host.run("python3", "-c", code, host.env["POCLAB_POOL_DIR"]).stdout)


def settled(host: Host, expected: int, slack: int) -> int:
    """The same, once the file system has given back what was deleted: it takes its time."""
    deadline = time.monotonic() + 20
    while (found := used(host)) > expected + slack and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
