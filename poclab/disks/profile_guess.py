"""What is on a disk, as far as its partition table and first sectors tell.

Used to choose the devices of a version that nobody described, and to record what a builder made.
The disk is poclab's own copy, so qemu-img may read it; what is on it is a stranger's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from poclab.core.errors import PoclabError
from poclab.core.units import MIB
from poclab.disks.pool_disks import read_sectors
from poclab.model.version import Profile

_SECTOR = 512
# UEFI 2.10, 5.3: header in the second sector, entries usually from the third.
_GPT = struct.Struct("<72xQII")
_ENTRY = struct.Struct("<16s16sQQ")
_FIRST_SECTORS = 34  # MBR, header and 128 entries of 128 bytes
_MAX_ENTRIES = 128
_LOOKED_AT = 8  # partitions whose first sectors are read
_LAST_SECTOR = 64 * MIB * 2048  # 64 TiB
_ESP = UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B").bytes_le
# Microsoft, "PARTITION_INFORMATION_GPT": reserved and basic data partitions.
_MS_RESERVED = UUID("E3C9E316-0B5C-4DB8-817D-F92DF00215AE").bytes_le
_MS_DATA = UUID("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7").bytes_le
# Roots of x86-64 and AArch64 (uapi-group.org, Discoverable Partitions), and Linux data, which is
# what osbuild's builders make of a root.
_ROOTS = {
    UUID("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709").bytes_le,
    UUID("B921B045-1DF0-41C3-AF44-4C6F280D3FAE").bytes_le,
}
_LINUX_DATA = UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4").bytes_le
# Where a file system has its magic number, and its label (e2fsprogs: lib/ext2fs/ext2_fs.h; Linux:
# fs/xfs/libxfs/xfs_format.h, fs/btrfs/fs.h). All of that is in the first 130 sectors.
_FILE_SYSTEMS = (
    ("ext4", 1080, b"\x53\xef", 1144, 16),
    ("xfs", 0, b"XFSB", 108, 12),
    ("btrfs", 0x10040, b"_BHRfS_M", 0x1012B, 256),
)
_SUPERBLOCKS = 130
_ROOT_LABEL = b"root"  # osbuild's (bootc-generic/imagetypes.yaml of image-builder 79.0.0)
# The OEM name at byte 3 of a boot sector: NTFS, ReFS and BitLocker.
_WINDOWS = (b"NTFS    ", b"ReFS\0\0\0\0", b"-FVE-FS-")
# MBR partition types: protective, EFI system.
_PROTECTIVE, _MBR_ESP = 0xEE, 0xEF


@dataclass(frozen=True)
class Guess:
    """Which devices a guest can drive, as far as its disk shows.

    Attributes:
        profile: the profile.
        reason: why, for people.
        sure: whether the disk shows it; otherwise it is only the most usual one.
    """

    profile: Profile
    reason: str
    sure: bool = True


Reader = Callable[[int, int], bytes]
"""Reads so many sectors from a place on."""


def guess(disk: Path, system: str = "") -> Guess:
    """Guess the profile of a qcow2 disk.

    Args:
        disk: the file.
        system: what its description calls the operating system, if it had one.

    Raises:
        PoclabError: qemu-img cannot read it.
    """
    return judge(lambda sector, count: read_sectors(disk, sector, count), system)


def judge(read: Reader, system: str = "") -> Guess:
    """Guess the profile of a disk whose sectors can be read; see `guess`."""
    first = read(0, _FIRST_SECTORS)
    if first[_SECTOR : _SECTOR + 8] == b"EFI PART":
        found = _by_gpt(first, read)
    elif first[510:512] == b"\x55\xaa":
        found = _by_mbr(first, read)
    else:
        found = Guess(Profile.LINUX, "it has no partition table", sure=False)
    if not found.sure and "windows" in system.lower():
        return Guess(Profile.WINDOWS, f"its description says {system[:60]!r}")
    return found


def root_filesystem(disk: Path) -> str:
    """Find the type of the root file system of a qcow2 disk; empty where the disk does not tell.

    Raises:
        PoclabError: if qemu-img cannot read it.
    """
    return root_of(lambda sector, count: read_sectors(disk, sector, count))


def root_of(read: Reader) -> str:
    """Find the type of the root file system of a disk whose sectors can be read.

    That of the partition which is a root by its type; else the one that all partitions for
    Linux data have, or that of the one labelled "root".
    """
    first = read(0, _FIRST_SECTORS)
    if first[_SECTOR : _SECTOR + 8] != b"EFI PART":
        return ""
    kinds = _partitions(first)
    roots = [begin for kind, begin in kinds if kind in _ROOTS]
    if roots:
        return _file_system(read, roots[0])[0]
    data = [begin for kind, begin in kinds if kind == _LINUX_DATA][:_LOOKED_AT]
    found = [_file_system(read, begin) for begin in data]
    named = [pair for pair in found if pair[1] == _ROOT_LABEL] or found
    types = {kind for kind, _ in named}
    return types.pop() if len(types) == 1 else ""


def _file_system(read: Reader, begin: int) -> tuple[str, bytes]:
    """The type and the label of a partition's file system; empty for one that is not known."""
    if not 0 < begin < _LAST_SECTOR:
        return "", b""
    try:
        head = read(begin, _SUPERBLOCKS)
    except PoclabError:  # it is too small, or lies beyond the disk's end
        return "", b""
    for kind, at, magic, label, length in _FILE_SYSTEMS:
        if head[at : at + len(magic)] == magic:
            return kind, head[label : label + length].split(b"\0")[0]
    return "", b""


def _partitions(first: bytes) -> list[tuple[bytes, int]]:
    """The type and the first sector of each partition of a GPT."""
    start, count, size = _GPT.unpack_from(first, _SECTOR)
    offset = start * _SECTOR
    kinds: list[tuple[bytes, int]] = []
    if size >= _ENTRY.size:
        for number in range(min(count, _MAX_ENTRIES)):
            at = offset + number * size
            if at + _ENTRY.size > len(first):
                break
            kind, _, begin, _ = _ENTRY.unpack_from(first, at)
            if kind != bytes(16):
                kinds.append((kind, begin))
    return kinds


def _by_gpt(first: bytes, read: Reader) -> Guess:
    kinds = _partitions(first)
    types = {kind for kind, _ in kinds}
    if _MS_RESERVED in types:
        return Guess(Profile.WINDOWS, "its GPT has a Microsoft reserved partition")
    data = [begin for kind, begin in kinds if kind == _MS_DATA]
    if any(_is_windows(read, begin) for begin in data[:_LOOKED_AT]):
        return Guess(Profile.WINDOWS, "its GPT has a partition with NTFS, ReFS or BitLocker")
    if _ESP in types:
        return Guess(Profile.LINUX, "its GPT has an EFI system partition and nothing of Windows")
    if not types:
        return Guess(Profile.LINUX, "its GPT has no partitions", sure=False)
    return Guess(Profile.LEGACY, "its GPT has no EFI system partition, so it starts by BIOS")


def _by_mbr(first: bytes, read: Reader) -> Guess:
    entries = [first[446 + 16 * number :][:16] for number in range(4)]
    parts = [(entry[4], int.from_bytes(entry[8:12], "little")) for entry in entries if entry[4]]
    if any(kind == _MBR_ESP for kind, _ in parts):
        return Guess(Profile.LINUX, "its MBR has an EFI system partition")
    if any(kind == _PROTECTIVE for kind, _ in parts):
        return Guess(Profile.LINUX, "its GPT is not where it should be", sure=False)
    windows = any(_is_windows(read, begin) for _, begin in parts)
    what = "Windows on " if windows else ""
    if not parts:
        # A file system's own boot sector ends like an MBR.
        return Guess(Profile.LINUX, "it has no partitions", sure=False)
    return Guess(
        Profile.LEGACY, f"it is {what}an MBR without EFI system partition, so it starts by BIOS"
    )


def _is_windows(read: Reader, begin: int) -> bool:
    if not 0 < begin < _LAST_SECTOR:
        return False
    try:
        return read(begin, 1)[3:11] in _WINDOWS
    except PoclabError:  # the partition lies beyond the disk's end
        return False
