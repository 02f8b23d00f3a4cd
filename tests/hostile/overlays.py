"""Disks in the pool whose headers name something else than the record does."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path


def make(path: Path, below: str = "", size: str = "4M", form: str = "qcow2") -> Path:
    """A qcow2 file over another one, which need not be there."""
    over = ["-u", "-b", below, "-F", form] if below else []
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *over, str(path), size]
    subprocess.run(argv, check=True, timeout=60)
    return path


def renamed_backing(path: Path, name: str) -> None:
    """Write another backing file's name into a header, as only a forger does."""
    with path.open("r+b") as file:
        head = file.read(65536)
        offset, _ = struct.unpack_from(">QI", head, 8)
        if offset == 0:
            offset = 4096
        file.seek(8)
        file.write(struct.pack(">QI", offset, len(os.fsencode(name))))
        file.seek(offset)
        file.write(os.fsencode(name))


def _bit(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(72)
        features = int.from_bytes(file.read(8)) | 1 << bit
        file.seek(72)
        file.write(features.to_bytes(8))


def _crypt(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(32)
        file.write((2).to_bytes(4))


def _link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("aside")).name)


def _zeros(path: Path) -> None:
    path.write_bytes(b"\0" * 4096)


# What can be done to the overlay `top` of a directory where `secret` is somebody's file.
FORGERIES: dict[str, Callable[[Path], None]] = {
    "another file": lambda top: renamed_backing(top, str(top.parent / "secret")),
    "a file of root's": lambda top: renamed_backing(top, "/etc/shadow"),
    "a way round": lambda top: renamed_backing(top, f"{top.parent}/../{top.parent.name}/secret"),
    "json": lambda top: renamed_backing(top, 'json:{"driver":"raw","file.filename":"/etc/shadow"}'),
    "a protocol": lambda top: renamed_backing(top, "nbd://127.0.0.1:1/x"),
    "a device": lambda top: renamed_backing(top, "/dev/zero"),
    "a name with NUL": lambda top: renamed_backing(top, "base\0"),
    "an external data file": lambda top: _bit(top, 2),
    "encryption": _crypt,
    "no qcow2 at all": _zeros,
    "cut short": lambda top: os.truncate(top, 20),
    "a link": _link,
}
