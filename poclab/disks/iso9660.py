"""What a file says of being a CD image: ISO 9660 (ECMA-119) with El Torito."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from poclab.core.errors import PoclabError
from poclab.core.plaintext import plain

_SECTOR = 2048
# ECMA-119, 6.2.1: the volume descriptors begin with the seventeenth sector.
_FIRST = 16
_MOST = 64  # descriptors that are looked at; real images have four or five
# ECMA-119, 8.1.1: types of descriptors.
_BOOT, _PRIMARY, _END = 0, 1, 255
_EL_TORITO = b"EL TORITO SPECIFICATION"  # El Torito 1.0, figure 7
# A partition table in front, which makes it start from a USB stick too (UEFI 2.10, table 5.1).
_MBR = b"\x55\xaa"


@dataclass(frozen=True)
class Volume:
    """A CD image.

    Attributes:
        label: the volume's identifier, or an empty string.
        bootable: whether it has an El Torito boot record.
        hybrid: whether it has a partition table, so that it starts from a USB stick.
    """

    label: str
    bootable: bool
    hybrid: bool


def read(path: Path) -> Volume:
    """Look at a CD image.

    Raises:
        PoclabError: it cannot be read, or is none.
    """
    label, bootable = None, False
    try:
        with path.open("rb") as file:
            hybrid = file.read(512)[510:] == _MBR
            file.seek(_FIRST * _SECTOR)
            for _ in range(_MOST):
                sector = file.read(_SECTOR)
                # ECMA-119, 8.1.2: the identifier.
                if len(sector) < _SECTOR or sector[1:6] != b"CD001" or sector[0] == _END:
                    break
                if sector[0] == _PRIMARY and label is None:
                    label = plain(sector[40:72].decode("ascii", "replace"))  # 8.4.7
                elif sector[0] == _BOOT and sector[7:39].rstrip(b"\0") == _EL_TORITO:
                    bootable = True
    except OSError as error:
        fix = "make one: poclab image iso NAME:TAG -o FILE" if error.errno == errno.ENOENT else ""
        raise PoclabError(f"{path} cannot be read", why=f"{error.strerror}", fix=fix) from error
    if label is None:
        raise PoclabError(
            f"{path} is no ISO image",
            why="there is no ISO 9660 volume in it",
            fix="make one: poclab image iso NAME:TAG -o FILE",
        )
    return Volume(label, bootable, hybrid)
