"""VHDX headers and tables; numbers are little-endian.

Microsoft, [MS-VHDX] "Virtual Hard Disk v2 File Format". The checksums (CRC-32C) are left to
QEMU, which reads the same structures and refuses wrong ones.
"""

from __future__ import annotations

import struct
from uuid import UUID

from poclab.formats.base import AGAIN, DiskInfo, Window
from poclab.units import KIB, MIB

_HEADERS = (64 * KIB, 128 * KIB)
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGIONS = 192 * KIB
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
    _check_blocks(window, regions[_BAT], size, block)
    return DiskInfo("vhdx", size)


def _check_headers(window: Window) -> None:
    """See that the header in force (the one with the higher number) has no log to replay."""
    found = [window.unpack(_HEADER, offset) for offset in _HEADERS]
    valid = [header for header in found if header[0] == b"head"]
    if not valid:
        raise window.refused("both of its VHDX headers are damaged", AGAIN)
    newest = max(valid, key=lambda header: header[2])
    if newest[5] != _NO_LOG:
        raise window.refused(
            "it was not closed properly", "repair it: qemu-img check -r all -f vhdx FILE"
        )


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
        assert isinstance(guid, bytes)
        if guid in found:
            raise window.refused(f"its {magic.decode()} table names something twice", AGAIN)
        found[guid] = (int(offset), int(length))
    return found


def _check_blocks(window: Window, region: tuple[int, int], size: int, block: int) -> None:
    # [MS-VHDX] 2.5: after the entries of so many payload blocks comes one of a sector bitmap,
    # which a disk without parent leaves unused.
    ratio = (1 << 23) * 512 // block
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // ratio
    if entries * 8 > region[1]:
        raise window.refused("its block table is too short for its size", AGAIN)
    last = window.size - block
    for piece in window.table(region[0], entries, "Q", big=False):
        for entry in piece:
            state = entry & _STATE
            if state == _PRESENT and entry & _OFFSET > last:
                raise window.refused(
                    "it is truncated or damaged: a block lies beyond its end", AGAIN
                )
            if state == _PARTLY:
                raise window.refused("its block table makes no sense", AGAIN)
