"""qcow2 headers (QEMU, docs/interop/qcow2.txt); numbers are big-endian."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from poclab.core.units import KIB, MIB
from poclab.disks.formats.base import AGAIN, SECTOR, Claims, DiskInfo, Window, copied, overclaimed
from poclab.disks.formats.detect import violations

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_V2_LENGTH = 72
_L1 = 36  # where the header has the first-level table's entries and its offset
# Header extensions: end of the list, and the name of an external data file.
_EXTENSION_END, _EXTENSION_DATA_FILE = 0, 0x44415441
# block/qcow2.h: QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE
_MAX_L1, _MAX_REFCOUNT_TABLE = 32 * MIB, 8 * MIB
# Incompatible features: not closed properly, corrupt, an external data file, a compression that
# is not deflate, and table entries of 128 bits. What comes after these is not known here.
_DIRTY, _CORRUPT, _ZSTD, _EXTENDED, _KNOWN = 1, 1 << 1, 1 << 3, 1 << 4, (1 << 5) - 1
_EXTENDED_BITS = 14  # a cluster has 32 parts of a sector at least then
# Entries of both tables: where what they lead to lies; of the second: compressed, zeros. The
# low half of an extended entry's second number has a bit for each part that is stored.
_OFFSET, _COMPRESSED, _ZERO, _PARTS = 0x00FFFFFFFFFFFE00, 1 << 62, 1, 0xFFFFFFFF
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
    found = violations("qcow2", window)
    if _is_extended(head):
        found.pop("unknown_features", None)  # the inspector does not know this one yet
    for check, text in found.items():
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
    extended = bool(incompatible & _EXTENDED)
    if extended and cluster_bits < _EXTENDED_BITS:
        raise window.refused("its qcow2 header makes no sense", AGAIN)
    if incompatible & (_DIRTY | _CORRUPT):
        state = "marked as corrupt" if incompatible & _CORRUPT else "not closed properly"
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
    size = window.check_size(int(size))
    tables = _Tables(cluster_bits, l1_offset, l1_entries, extended, bool(incompatible & _ZSTD))
    return DiskInfo("qcow2", size, copied(_clusters(window, tables), tables.cluster, size))


def _is_extended(head: bytes) -> bool:
    """Whether a header of version 3 has entries of 128 bits, and no feature that is unknown."""
    fields = _HEADER.unpack_from(head.ljust(_HEADER.size, b"\0"))
    version, incompatible = fields[1], fields[13]
    return version == 3 and bool(incompatible & _EXTENDED) and incompatible <= _KNOWN


# --- what is stored ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Tables:
    """How a disk's clusters are found.

    Attributes:
        bits: of an offset in a cluster.
        offset: where the first-level table is.
        entries: how many it has.
        extended: whether entries of the second level have 128 bits, not 64.
        zstd: whether compressed clusters are zstd's, not deflate's.
    """

    bits: int
    offset: int
    entries: int
    extended: bool
    zstd: bool

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.bits

    @property
    def least(self) -> int:
        """Bytes that a compressed cluster takes at least.

        Deflate packs 1032 bytes into one at most (zlib.net, "Maximum Compression Factor"). A zstd
        frame has 6 bytes and a block of 4 for each 128 KiB (RFC 8878, 3.1.1).
        """
        return 6 + 4 * -(-self.cluster // (128 * KIB)) if self.zstd else -(-self.cluster // 1032)


def _clusters(window: Window, tables: _Tables) -> int:
    """Count the clusters that hold data.

    Raises:
        PoclabError: if there are more than the file can hold.
    """
    plain = Claims(window, tables.cluster)
    room = window.stored if window.is_sparse else window.size
    packed = taken = 0
    for entries in _second_level(window, tables):
        plain.add(_plain(entries, extended=tables.extended))
        for entry in entries[:: 2 if tables.extended else 1]:
            if entry & _COMPRESSED:
                packed += 1
                taken += _packed_size(entry, tables)
        if taken > room:
            raise overclaimed(window)
    return plain.count + packed


def _second_level(window: Window, tables: _Tables) -> Iterator[array[int]]:
    """The second-level tables in pieces; a table in a hole leads to nothing."""
    walked = Claims(window, tables.cluster)
    for first in window.table(tables.offset, tables.entries, "Q", big=True):
        offsets = [entry & _OFFSET for entry in first if entry & _OFFSET]
        walked.add(offsets)
        for offset in offsets:
            if window.has_data(offset, tables.cluster):
                yield from window.table(offset, tables.cluster // 8, "Q", big=True)


def _plain(entries: array[int], *, extended: bool) -> list[int]:
    """Where the clusters lie that hold data and are not compressed."""
    if extended:
        pairs = zip(entries[::2], entries[1::2], strict=True)
        return [
            entry & _OFFSET
            for entry, parts in pairs
            if entry & _OFFSET and parts & _PARTS and not entry & _COMPRESSED
        ]
    unstored = _COMPRESSED | _ZERO
    return [entry & _OFFSET for entry in entries if entry & _OFFSET and not entry & unstored]


def _packed_size(entry: int, tables: _Tables) -> int:
    """Bytes that a compressed cluster takes at least, by its entry.

    That has the offset in its low bits, and above it how many sectors follow the first one; the
    data ends somewhere in the last of these.
    """
    above = tables.bits - 8
    bits = 62 - above
    sectors = (entry >> bits & (1 << above) - 1) + 1
    return max(tables.least, (sectors - 1) * SECTOR + 1 - entry % SECTOR)


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
