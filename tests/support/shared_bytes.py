"""Random disks on a real file system that shares blocks: afterwards every byte is the same.

    python -m tests.support.shared_bytes DIRECTORY

Fails with a traceback. Run by tests/integration/test_sharing.py where the file system is mounted.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poclab.disks import dedupe
from poclab.disks.dedupe import Disk
from poclab.disks.fingerprints import BLOCK
from tests.support import b3sum

# Runs of blocks: which one to begin with (0 is a hole), and how many.
pieces = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=10)
_SEED = [os.urandom(BLOCK) for _ in range(64)]


def write(path: Path, runs: list[tuple[int, int]], tail: int) -> bytes:
    """Write a disk; what it holds in the end."""
    with path.open("wb") as file:
        for first, count in runs:
            if first:
                file.write(b"".join(_SEED[(first + n) % 64] for n in range(count)))
            else:
                file.seek(count * BLOCK, os.SEEK_CUR)
        file.write(b"t" * tail)
    return path.read_bytes()


def check(root: Path) -> int:
    """Try it; returns the bytes that were shared in all."""
    total = 0

    @settings(
        max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(disks=st.lists(st.tuples(pieces, st.integers(0, 5000)), min_size=2, max_size=4))
    def every_byte(disks: list[tuple[list[tuple[int, int]], int]]) -> None:
        nonlocal total
        work = Path(tempfile.mkdtemp(dir=root))
        try:
            before: list[tuple[Disk, bytes]] = []
            for number, (runs, tail) in enumerate(disks):
                path = work / str(number)
                data = write(path, runs, tail)
                disk = Disk(b3sum.digest(data), path)
                found = dedupe.share(disk, [other for other, _ in before], str(root))
                known = {
                    other[at : at + BLOCK]
                    for _, other in before
                    for at in range(0, len(other) - BLOCK + 1, BLOCK)
                }
                mine = [data[at : at + BLOCK] for at in range(0, len(data) - BLOCK + 1, BLOCK)]
                wanted = [block for block in mine if block in known and any(block)]
                assert found == len(wanted) * BLOCK, (found, len(wanted) * BLOCK)
                total += found
                before.append((disk, data))
                for other, content in before:
                    assert other.path.read_bytes() == content
        finally:
            shutil.rmtree(work)

    every_byte()
    return total


if __name__ == "__main__":
    if not check(Path(sys.argv[1])):
        sys.exit("nothing was shared at all")
