"""qcow2 headers (QEMU, docs/interop/qcow2.txt); numbers are big-endian."""

from __future__ import annotations

import struct
from pathlib import Path

from poclab.formats.base import AGAIN, SECTOR, DiskInfo, Window
from poclab.formats.detect import violations
from poclab.units import MIB

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_V2_LENGTH = 72
_L1 = 36  # where the header has the first-level table's entries and its offset
# Header extensions: end of the list, and the name of an external data file.
_EXTENSION_END, _EXTENSION_DATA_FILE = 0, 0x44415441
# block/qcow2.h: QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE
_MAX_L1, _MAX_REFCOUNT_TABLE = 32 * MIB, 8 * MIB
_VIOLATIONS = {
    "backing_file": ("it has a backing file", "flatten it: qemu-img convert -O qcow2 FILE NEW"),
    "data_file": ("its data is in another file", "flatten it: qemu-img convert -O qcow2 FILE NEW"),
    "unknown_features": (
        "it uses qcow2 features poclab does not know",
        "convert it: qemu-img convert -O qcow2 FILE NEW",
    ),
}


def read(window: Window) -> DiskInfo:
    """Check a qcow2 header.

    Raises:
        PoclabError: the file is damaged, or refers to another one.
    """
    head = window.head()
    if window.size < SECTOR:
        raise window.refused("it is a truncated qcow2 file", AGAIN)
    for check, text in violations("qcow2", window).items():
        why, fix = _VIOLATIONS.get(check, (text, ""))
        raise window.refused(why, fix)
    (_, version, _, _, cluster_bits, size, crypt, l1_entries, l1_offset, refcount_offset,
     refcount_clusters, _, _, incompatible, _, _, refcount_order, length) = (
        _HEADER.unpack_from(head)
    )  # fmt: skip
    if version == 2:
        incompatible, refcount_order, length = 0, 4, _V2_LENGTH
    if not 9 <= cluster_bits <= 21 or refcount_order > 6 or not 72 <= length <= 1 << cluster_bits:
        raise window.refused("its qcow2 header makes no sense", AGAIN)
    if crypt:
        raise window.refused("it is encrypted", "decrypt it: qemu-img convert --object secret,...")
    if incompatible & 0b11:
        state = "marked as corrupt" if incompatible & 0b10 else "not closed properly"
        raise window.refused(f"it is {state}", "repair it: qemu-img check -r all -f qcow2 FILE")
    _check_extensions(window, head, length)
    refcount_table = refcount_clusters << cluster_bits
    if l1_entries * 8 > _MAX_L1 or refcount_table > _MAX_REFCOUNT_TABLE:
        raise window.refused("its tables are larger than qcow2 allows")
    if not (
        window.holds(l1_offset, l1_entries * 8)
        and window.holds(refcount_offset, refcount_table)
        and window.holds(0, 1 << cluster_bits)
    ):
        raise window.refused("it is truncated: its tables lie beyond its end", AGAIN)
    # Clusters may be compressed, or be as small as 512 bytes.
    return DiskInfo("qcow2", window.check_size(int(size)), packed=True)


def is_written(path: Path) -> bool:
    """Whether anything was ever written to a disk of poclab's own, also while a VM runs on it.

    QEMU writes an entry of the first-level table before any cluster below it is used
    (l2_allocate in block/qcow2-cluster.c).

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        entries, offset = struct.unpack_from(">IQ", head, _L1)
        file.seek(offset)
        return any(file.read(min(entries * 8, _MAX_L1)))


def _check_extensions(window: Window, head: bytes, offset: int) -> None:
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise window.refused(*_VIOLATIONS["data_file"])
        offset += 8 + (length + 7) // 8 * 8
    raise window.refused("its qcow2 header has no end", AGAIN)
