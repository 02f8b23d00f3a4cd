"""VMDK headers: one file that holds all of its data (monolithicSparse, streamOptimized).

VMware, "Virtual Disk Format 5.0", SparseExtentHeader; QEMU's block/vmdk.c for what is done
with it. Numbers are little-endian, offsets in sectors.
"""

from __future__ import annotations

import re
import struct

from poclab.core.units import KIB, MIB
from poclab.disks.formats.base import AGAIN, SECTOR, Claims, DiskInfo, Window, copied
from poclab.disks.formats.detect import violations

# magic, version, flags, capacity, grain size, descriptor offset and size, entries of a grain
# table, redundant grain directory, grain directory, overhead, unclean shutdown, 4 characters
# that show a text-mode copy, compression
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MAGIC = b"KDMV"
_LINE_ENDS = b"\n \r\n"
_AT_END = 0xFFFFFFFFFFFFFFFF
_ZERO_GRAINS = 1 << 2  # flag: entry 1 of a grain table means zeros
# The compression, which QEMU goes by whatever the flags say (vmdk_open_vmdk4()), and how many
# bytes deflate makes of one at most: two bits may stand for 258 bytes (zlib.net/zlib_tech.html,
# "Maximum Compression Factor").
_DEFLATE, _MOST_OF_ONE = 1, 1032
_MAX_ENTRIES = 512  # block/vmdk.c refuses larger grain tables
_MAX_GRAIN = 4 * KIB  # sectors: 2 MiB; more than any program makes
_TYPE = re.compile(rb'createtype\s*=\s*"?([a-z0-9]{1,40})', re.IGNORECASE)
_WHOLE = ("monolithicsparse", "streamoptimized")
_WHERE_MADE = "where it was made: qemu-img convert -f vmdk -O qcow2 FILE NEW, or export an OVA"


def read(window: Window) -> DiskInfo:
    """Check a VMDK header, its descriptor and its footer.

    Raises:
        PoclabError: the file is damaged, or refers to another one.
    """
    _check_type(window)
    head = _header(window, 0)
    found = violations("vmdk", window)
    if "footer" in found:
        why = f"its footer is missing or wrong ({found['footer']})"
        raise window.refused(f"{why}; it may be truncated", AGAIN)
    for text in found.values():
        raise window.refused(f"its descriptor is not acceptable: {text}", _WHERE_MADE)
    capacity, grain, entries = head[3], head[4], head[7]
    descriptor = window.read(head[5] * SECTOR, min(head[6] * SECTOR, MIB))
    if b"parentfilenamehint" in descriptor.lower():
        # QEMU opens what stands there, whatever parentCID says.
        raise window.refused("it holds the differences to another disk", _WHERE_MADE)
    if not (0 < grain <= _MAX_GRAIN and grain & (grain - 1) == 0 and 0 < entries <= _MAX_ENTRIES):
        raise window.refused("its VMDK header makes no sense", AGAIN)
    # With a capacity of 0 QEMU would go by the extents of the descriptor, which name files.
    size = window.check_size(capacity * SECTOR)
    directory = _directory(window, head)
    tables = -(-capacity // (entries * grain))
    for offset in (directory, head[8] if head[2] & 2 else directory):
        if not window.holds(offset * SECTOR, tables * 4):
            raise window.refused("it is truncated: its tables lie beyond its end", AGAIN)
    grains = _grains(window, head, directory, tables)
    return DiskInfo("vmdk", size, copied(grains, grain * SECTOR, size))


def _grains(window: Window, head: tuple[int, ...], directory: int, tables: int) -> int:
    """Count the grains that are stored.

    Raises:
        PoclabError: if there are more than the file can hold.
    """
    flags, grain, entries = head[2], head[4], head[7]
    size = grain * SECTOR
    # A compressed grain begins at a sector.
    least_size = max(SECTOR, -(-size // _MOST_OF_ONE)) if head[13] == _DEFLATE else size
    claims = Claims(window, least_size)
    walked = Claims(window, entries * 4)
    least = 2 if flags & _ZERO_GRAINS else 1
    for piece in window.table(directory * SECTOR, tables, "I", big=False):
        offsets = [entry * SECTOR for entry in piece if entry]
        walked.add(offsets)
        for offset in offsets:
            for table in window.table(offset, entries, "I", big=False):
                claims.add([entry * SECTOR for entry in table if entry >= least])
    return claims.count


def _check_type(window: Window) -> None:
    """Name the sub-formats whose data is elsewhere."""
    head = window.read(0, 64 * KIB)
    if head.startswith(b"COWD"):
        raise window.refused("it is one file of an ESXi disk", _WHERE_MADE)
    found = _TYPE.search(head)
    if found and found[1].decode().lower() not in _WHOLE:
        raise window.refused(f"its data is in other files ({found[1].decode()})", _WHERE_MADE)
    if not head.startswith(_MAGIC):
        raise window.refused("it is a VMDK descriptor, which names other files", _WHERE_MADE)


def _header(window: Window, offset: int) -> tuple[int, ...]:
    """The header as numbers.

    Raises:
        PoclabError: it cannot be one.
    """
    fields = window.unpack(_HEADER, offset)
    magic, version, ends, compression = fields[0], fields[1], fields[12], fields[13]
    if magic != _MAGIC or version not in (1, 2, 3) or compression not in (0, 1):
        raise window.refused("its VMDK header makes no sense", AGAIN)
    if ends not in (_LINE_ENDS, b"\0\0\0\0"):
        raise window.refused("a transfer in text mode has damaged it", AGAIN)
    return tuple(field if isinstance(field, int) else 0 for field in fields)


def _directory(window: Window, head: tuple[int, ...]) -> int:
    """Where the grain directory is, in sectors; a footer says it when the header does not."""
    if head[9] != _AT_END:
        return head[9]
    # The file ends with a marker, the footer, and another marker, a sector each; QEMU takes
    # all that the footer says in place of the header.
    foot = _header(window, window.size - 2 * SECTOR)
    if foot[:9] != head[:9] or foot[13] != head[13]:
        raise window.refused("its footer contradicts its header", AGAIN)
    return foot[9]
