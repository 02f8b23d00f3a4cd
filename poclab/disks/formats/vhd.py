"""VHD footers and headers, fixed and dynamic disks; numbers are big-endian.

Microsoft, "Virtual Hard Disk Image Format Specification" 1.0. QEMU calls the format vpc.
"""

from __future__ import annotations

import struct

from poclab.core.units import MIB
from poclab.disks.formats.base import AGAIN, SECTOR, Claims, DiskInfo, Window, copied
from poclab.disks.formats.detect import VHD_COOKIE

_FOOTER = struct.Struct(">8sIIQI4sIIQQIII16s428x")  # 428: saved state, then reserved
_HEADER = struct.Struct(">8sQQIIII")
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_UNUSED = 0xFFFFFFFF
_MAX_BLOCK = 256 * MIB


def read(window: Window) -> DiskInfo:
    """Check the footer of a VHD and, of a dynamic one, its header and its block table.

    Raises:
        PoclabError: the file is damaged, or refers to another one.
    """
    end = window.size - SECTOR
    footer = window.read(end, SECTOR) if end >= 0 else b""
    if not footer.startswith(VHD_COOKIE):
        raise window.refused("its VHD footer is missing; it may be truncated", AGAIN)
    fields = _FOOTER.unpack(footer)
    size, kind, checksum = fields[9], fields[11], fields[12]
    if checksum != checksum_of(footer, 64):
        raise window.refused("the checksum of its VHD footer does not hold", AGAIN)
    window.check_size(size)
    if kind == _DIFFERENCING:
        raise window.refused(
            "it holds the differences to another disk", "merge it first: Merge-VHD on Hyper-V"
        )
    if size % SECTOR or kind not in (_FIXED, _DYNAMIC):
        raise window.refused("its VHD footer makes no sense", AGAIN)
    if kind == _DYNAMIC:
        return DiskInfo("vpc", size, _check_dynamic(window, footer, fields[3], size))
    if end != size:
        raise window.refused("it is truncated: it is not as long as its footer says", AGAIN)
    return DiskInfo("vpc", size, size)


def checksum_of(data: bytes, at: int) -> int:
    """The checksum of a VHD structure: the complement of the sum of its other bytes."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def _check_dynamic(window: Window, footer: bytes, offset: int, size: int) -> int:
    """Check what a dynamic disk has beside its footer, and say how much of it a copy holds."""
    if window.read(0, SECTOR) != footer:
        # QEMU goes by the copy at the beginning.
        raise window.refused("its VHD footer and the copy of it differ", AGAIN)
    header = window.read(offset, 1024)
    if len(header) < 1024 or checksum_of(header, 36) != _HEADER.unpack_from(header)[6]:
        raise window.refused("the checksum of its VHD header does not hold", AGAIN)
    cookie, _, table, _, entries, block, _ = _HEADER.unpack_from(header)
    if cookie != b"cxsparse" or not SECTOR <= block <= _MAX_BLOCK or block & (block - 1):
        raise window.refused("its VHD header makes no sense", AGAIN)
    if not window.holds(table, entries * 4):
        raise window.refused("it is truncated: its tables lie beyond its end", AGAIN)
    if entries * block < size:
        raise window.refused("its block table is too short for its size", AGAIN)
    # A block begins with a bitmap of its sectors, in whole sectors.
    bitmap = -(-block // SECTOR // 8 // SECTOR) * SECTOR
    last = (window.size - bitmap - block) // SECTOR
    claims = Claims(window, bitmap + block)
    for piece in window.table(table, entries, "I", big=True):
        if any(last < entry < _UNUSED for entry in piece):
            raise window.refused("it is truncated or damaged: a block lies beyond its end", AGAIN)
        claims.add([entry * SECTOR for entry in piece if entry != _UNUSED])
    return copied(claims.count, block, size)
