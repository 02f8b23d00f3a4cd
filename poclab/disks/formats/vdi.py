"""VDI headers (QEMU, block/vdi.c, VdiHeader); numbers are little-endian."""

from __future__ import annotations

import struct

from poclab.core.units import MIB
from poclab.disks.formats.base import AGAIN, SECTOR, Claims, DiskInfo, Window, copied

# From 0x44: version, header size, image type, flags; from 0x154: the map and the data, the
# geometry (4 numbers) and a gap, disk size, block size, extra bytes of a block, blocks of the
# disk, blocks stored; four UUIDs: the image's, its last change's, the link's, the parent's.
_FIRST = struct.Struct("<IIII")
_SECOND = struct.Struct("<II20xQIIII16s16s16s16s")
_VERSION = 0x00010001
_DYNAMIC, _STATIC = 1, 2
_FREE = 0xFFFFFFFE  # this and the next number mean that a block is not stored
_NONE = bytes(16)


def read(window: Window) -> DiskInfo:
    """Check a VDI header and the map of its blocks.

    Raises:
        PoclabError: the file is damaged, or refers to another one.
    """
    version, _, kind, _ = (int(x) for x in window.unpack(_FIRST, 0x44))
    second = window.unpack(_SECOND, 0x154)
    table, data, size, block, extra, blocks, stored = (int(x) for x in second[:7])
    if version != _VERSION:
        raise window.refused("it is of an old or unknown VDI version", AGAIN)
    if kind not in (_DYNAMIC, _STATIC) or second[9] != _NONE or second[10] != _NONE:
        raise window.refused(
            "it holds the differences to another disk",
            "flatten it: VBoxManage clonemedium disk FILE NEW.vdi",
        )
    if block != MIB or extra or window.number("<I", 0x168) != SECTOR:
        raise window.refused("its VDI header makes no sense", AGAIN)
    window.check_size(size)
    if blocks != -(-size // MIB) or stored > blocks:
        raise window.refused("its number of blocks does not fit its size", AGAIN)
    if not (window.holds(table, blocks * 4) and window.holds(data, stored * MIB)):
        raise window.refused("it is truncated: its tables or data lie beyond its end", AGAIN)
    most = (window.size - data) // MIB
    claims = Claims(window, MIB)
    for piece in window.table(table, blocks, "I", big=False):
        if any(most <= entry < _FREE for entry in piece):
            raise window.refused("it is truncated or damaged: a block lies beyond its end", AGAIN)
        claims.add([data + entry * MIB for entry in piece if entry < _FREE])
    virtual_size = -(-size // SECTOR) * SECTOR
    return DiskInfo("vdi", virtual_size, copied(claims.count, MIB, virtual_size))
