"""BLAKE3 digests of disks: of bytes, and of files that another account may read.

As a program: what `b3sum` prints, which Debian 12 does not have.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from tests.support.hosts import Host


def digest(data: bytes) -> str:
    """As versions have it: `blake3:HEX`."""
    return f"blake3:{blake3(data).hexdigest()}"


def hex_of(host: Host, path: Path | str, *, packed: bool = False) -> str:
    """The digest of a file of a host, or of what is packed in it, in hexadecimal."""
    read = "zstd -dcq" if packed else "cat"
    script = f'{read} "$1" | "$2" -m tests.support.b3sum'
    python = host.place.installation.python
    return host.run("sh", "-c", script, "sh", str(path), str(python)).stdout.split()[0]


if __name__ == "__main__":
    state = blake3()
    while piece := sys.stdin.buffer.read(1 << 20):
        state.update(piece)
    print(f"{state.hexdigest()}  -")
