"""VHDX headers and tables; numbers are little-endian.

Microsoft, [MS-VHDX] "Virtual Hard Disk v2 File Format". Of the two headers the one with the higher
number is in force, of the region tables the first one that holds (2.2.2, 2.2.3). QEMU passes over a
header whose checksum is wrong, and reads the first region table only (vhdx_parse_header and
vhdx_open_region_tables in block/vhdx.c). So that no two programs go by different ones, a disk is
taken only when both of each hold.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from uuid import UUID

from poclab.core.units import KIB, MIB
from poclab.disks.formats.base import AGAIN, Claims, DiskInfo, Window, copied
from poclab.disks.formats.crc32c import crc32c

_HEADERS = (64 * KIB, 128 * KIB)
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_HEADER_SIZE = 4 * KIB
_CHECKSUM = slice(4, 8)  # in headers and region tables; zeros while it is computed
_VERSION = 1
_REGIONS, _REGIONS_COPY = 192 * KIB, 256 * KIB
_REGIONS_SIZE = 64 * KIB
_REGION_TABLE = struct.Struct("<4sII")
_REGION = struct.Struct("<16sQII")
_ITEM_TABLE = struct.Struct("<8sHH")
_ITEM = struct.Struct("<16sIIII")
_MOST = 2047  # entries of either table
_NO_LOG = bytes(16)
_HAS_PARENT = 2
# The low three bits of a block's entry; its offset in MiB begins at bit 20.
_STATE, _PARTLY, _PRESENT = 7, 7, 6
_OFFSET = ~(MIB - 1)


def _guid(text: str) -> bytes:
    return UUID(text).bytes_le


_BAT = _guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
_METADATA = _guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")
_PARAMETERS = _guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
_SIZE = _guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
_SECTOR_SIZE = _guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
_PARENT = _guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")


def read(window: Window) -> DiskInfo:
    """Check the headers, the metadata and the block table of a VHDX.

    Raises:
        PoclabError: the file is damaged, or refers to another one.
    """
    _check_headers(window)
    _check_region_tables(window)
    regions = _entries(window, _REGION_TABLE, _REGION, _REGIONS, b"regi", 16)
    if _BAT not in regions or _METADATA not in regions:
        raise window.refused("its region table makes no sense", AGAIN)
    for offset, length, *_ in regions.values():
        if offset < MIB or not window.holds(offset, length):
            raise window.refused("it is truncated: its tables lie beyond its end", AGAIN)
    start, length, *_ = regions[_METADATA]
    items = _entries(window, _ITEM_TABLE, _ITEM, start, b"metadata", 32)
    if not items.keys() >= {_PARAMETERS, _SIZE, _SECTOR_SIZE}:
        raise window.refused("its metadata table makes no sense", AGAIN)
    if any(item[0] + item[1] > length for item in items.values()):
        raise window.refused("its metadata lies outside its region", AGAIN)
    block = window.number("<I", start + items[_PARAMETERS][0])
    flags = window.number("<I", start + items[_PARAMETERS][0] + 4)
    size = window.check_size(window.number("<Q", start + items[_SIZE][0]))
    sector = window.number("<I", start + items[_SECTOR_SIZE][0])
    if flags & _HAS_PARENT or _PARENT in items:
        raise window.refused(
            "it holds the differences to another disk", "merge it first: Merge-VHD on Hyper-V"
        )
    if sector != 512:
        raise window.refused(
            f"its sectors have {sector} bytes, and guests here see 512",
            "convert it where it was made: Convert-VHD to a new disk of 512-byte sectors",
        )
    if not MIB <= block <= 256 * MIB or block & (block - 1) or size % sector:
        raise window.refused("its metadata makes no sense", AGAIN)
    return DiskInfo("vhdx", size, _check_blocks(window, regions[_BAT], size, block))


def _check_headers(window: Window) -> None:
    """Check both headers, and that the one in force has no log to replay."""
    found = [_header(window, offset) for offset in _HEADERS]
    valid = [header for header in found if header is not None]
    if not valid:
        raise window.refused("both of its VHDX headers are damaged", AGAIN)
    if len(valid) < len(found):
        raise window.refused(
            "one of its two VHDX headers is damaged; it was not closed properly",
            f"{AGAIN}, or convert it where it was made: Convert-VHD",
        )
    first, second = valid
    if first != second and first.number == second.number:  # Disk2VHD writes the same one twice
        raise window.refused("its two VHDX headers contradict each other", AGAIN)
    if max(valid, key=lambda header: header.number).log != _NO_LOG:
        raise window.refused(
            "it was not closed properly", "repair it: qemu-img check -r all -f vhdx FILE"
        )


class _Head(NamedTuple):
    """A header: the number that tells which one is newer, and the GUID of the log."""

    number: int
    log: bytes
    data: bytes


def _header(window: Window, offset: int) -> _Head | None:
    """A header, or None if it does not hold."""
    data = window.read(offset, _HEADER_SIZE)
    if len(data) < _HEADER_SIZE or not _holds(data):
        return None
    magic, _, number, _, _, log, _, version, _, _ = _HEADER.unpack_from(data)
    return _Head(number, log, data) if magic == b"head" and version == _VERSION else None


def _holds(data: bytes) -> bool:
    """Whether the checksum of a header or a region table is right."""
    known = int.from_bytes(data[_CHECKSUM], "little")
    return crc32c(data[: _CHECKSUM.start] + bytes(4) + data[_CHECKSUM.stop :]) == known


def _check_region_tables(window: Window) -> None:
    first, second = (window.read(each, _REGIONS_SIZE) for each in (_REGIONS, _REGIONS_COPY))
    if not _holds(first) or first != second:
        raise window.refused("its region table makes no sense, or differs from its copy", AGAIN)


def _entries(
    window: Window, head: struct.Struct, form: struct.Struct, start: int, magic: bytes, skip: int
) -> dict[bytes, tuple[int, int]]:
    """A table of things by their GUID: offset and length of each."""
    signature, _, count = window.unpack(head, start)
    if signature != magic or int(count) > _MOST:
        raise window.refused(f"its {magic.decode()} table makes no sense", AGAIN)
    found: dict[bytes, tuple[int, int]] = {}
    for number in range(int(count)):
        guid, offset, length, *_ = window.unpack(form, start + skip + number * form.size)
        if not isinstance(guid, bytes) or guid in found:
            raise window.refused(f"its {magic.decode()} table names something twice", AGAIN)
        found[guid] = (int(offset), int(length))
    return found


def _check_blocks(window: Window, region: tuple[int, int], size: int, block: int) -> int:
    """Check the block table, and say how much of the disk a copy holds."""
    # [MS-VHDX] 2.5: after the entries of so many payload blocks comes one of a sector bitmap,
    # which a disk without parent leaves unused.
    ratio = (1 << 23) * 512 // block
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // ratio
    if entries * 8 > region[1]:
        raise window.refused("its block table is too short for its size", AGAIN)
    last = window.size - block
    claims = Claims(window, block)
    for piece in window.table(region[0], entries, "Q", big=False):
        claims.add([entry & _OFFSET for entry in piece if entry & _STATE == _PRESENT])
        for entry in piece:
            state = entry & _STATE
            if state == _PRESENT and entry & _OFFSET > last:
                raise window.refused(
                    "it is truncated or damaged: a block lies beyond its end", AGAIN
                )
            if state == _PARTLY:
                raise window.refused("its block table makes no sense", AGAIN)
    return copied(claims.count, block, size)
