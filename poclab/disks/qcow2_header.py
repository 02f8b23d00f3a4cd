"""The beginning of a qcow2 file, read within bounds (QEMU, docs/interop/qcow2.txt).

This is for disks in the pool, of which poclab wrote the headers; numbers are big-endian. Strangers'
disks are inspected by `poclab.disks.formats` before they come in.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from poclab.core.errors import PoclabError

_MAGIC = b"QFI\xfb"
_FIELDS = struct.Struct(">4sIQIIQI")  # magic, version, name's offset and length, bits, size, crypt
_FEATURES, _HEADER_LENGTH = 72, 100  # where version 3 has them
_DATA_FILE = 1 << 2  # an incompatible feature: the data is in another file
# Header extensions: end of the list, the backing file's format, an external data file's name.
_END, _FORMAT, _DATA_NAME = 0, 0xE2792ACA, 0x44415441
# The name is in the first cluster, which has 2 MiB at most, and no longer than this.
_LARGEST_CLUSTER, _LONGEST_NAME = 2 << 20, 1023
_FIRST = 64 * 1024


@dataclass(frozen=True)
class Head:
    """What the beginning of a qcow2 file says of the disk.

    Attributes:
        virtual_size: bytes a guest sees.
        backing: the name of what it stands on, or an empty string.
        backing_format: the format that has, or an empty string where it is to be guessed.
        elsewhere: whether its data is in another file, or encrypted.
    """

    virtual_size: int
    backing: str
    backing_format: str = ""
    elsewhere: bool = False


def read_head(data: bytes) -> Head | None:
    """Read a qcow2 file's first bytes.

    Args:
        data: the first cluster of 64 KiB, in which the name lies, or more.

    Returns:
        None for what is no qcow2 file.
    """
    if len(data) < 32 or data[:4] != _MAGIC:
        return None
    _, version, offset, length, _, size, crypt = _FIELDS.unpack_from(
        data.ljust(_FIELDS.size, b"\0")
    )
    name = data[offset : offset + min(length, _LONGEST_NAME)] if offset else b""
    backing_format, named = _extensions(data, version)
    features = int.from_bytes(data[_FEATURES : _FEATURES + 8]) if version > 2 else 0
    elsewhere = bool(crypt or named or features & _DATA_FILE)
    return Head(size, os.fsdecode(name), backing_format, elsewhere)


def _extensions(data: bytes, version: int) -> tuple[str, bool]:
    """The backing file's format, and whether an external data file is named."""
    length = int.from_bytes(data[_HEADER_LENGTH : _HEADER_LENGTH + 4]) if version > 2 else 72
    offset, found, named = max(length, 72), "", False
    while offset + 8 <= len(data):
        kind, size = struct.unpack_from(">II", data, offset)
        if kind == _END:
            break
        if kind == _FORMAT:
            found = os.fsdecode(data[offset + 8 : offset + 8 + min(size, 15)])
        named = named or kind == _DATA_NAME
        offset += 8 + (size + 7) // 8 * 8
    return found, named


def head_of(path: Path, *, follow: bool = False) -> Head | None:
    """Read the header of a file.

    Args:
        path: the file; a FIFO or a device of characters is not waited for.
        follow: whether it may be a link to another file.

    Returns:
        None for what is no qcow2 file.

    Raises:
        OSError: it cannot be read, or is a link.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            return None
        data = os.pread(fd, _FIRST, 0)
        if len(data) >= 20 and data[:4] == _MAGIC:
            offset, length = struct.unpack_from(">QI", data, 8)
            if len(data) < offset + min(length, _LONGEST_NAME) and offset < _LARGEST_CLUSTER:
                data += os.pread(fd, _LARGEST_CLUSTER, len(data))
    finally:
        os.close(fd)
    return read_head(data)


def backing_file(path: Path) -> str:
    """The name of what a qcow2 file stands on, as it is in the header, or an empty string.

    A file that is no qcow2 stands on nothing.

    Raises:
        OSError: it cannot be read.
    """
    head = head_of(path, follow=True)
    return head.backing if head else ""


def virtual_size(path: Path) -> int:
    """The bytes a guest sees of a qcow2 file of poclab's own.

    Raises:
        PoclabError: it is no qcow2 file, or cannot be read.
    """
    try:
        head = head_of(path)
    except OSError as error:
        raise PoclabError(f"{path} cannot be read", why=f"{error.strerror}") from error
    if head is None:
        raise PoclabError(f"{path} is no qcow2 disk")
    return head.virtual_size
