"""What a disk's first sectors say about the devices its guest can drive."""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

import pytest

from poclab.core.errors import PoclabError
from poclab.core.units import MIB
from poclab.disks import pool_disks, profile_guess
from poclab.model.version import Profile
from tests.support.disks import qemu_img

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
RESERVED = "E3C9E316-0B5C-4DB8-817D-F92DF00215AE"
DATA = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
NTFS = b"\xeb\x52\x90NTFS    "
FAT = b"\xeb\x58\x90mkfs.fat"


def gpt(*partitions: tuple[str, bytes]) -> bytes:
    """A disk of 8 MiB with a GPT; each partition has 1 MiB, and its first bytes are given."""
    data = bytearray(8 * MIB)
    data[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\0\0\0", 1, 16383)
    data[510:512] = b"\x55\xaa"
    data[512:604] = struct.pack("<8s64xQII4x", b"EFI PART", 2, 128, 128)
    for number, (kind, head) in enumerate(partitions):
        begin = 2048 * (number + 1)
        entry = struct.pack("<16s16sQQ", UUID(kind).bytes_le, b"x" * 16, begin, begin + 2047)
        data[1024 + 128 * number : 1024 + 128 * number + len(entry)] = entry
        data[begin * 512 : begin * 512 + len(head)] = head
    return bytes(data)


def mbr(*partitions: tuple[int, bytes]) -> bytes:
    data = bytearray(8 * MIB)
    data[510:512] = b"\x55\xaa"
    for number, (kind, head) in enumerate(partitions):
        begin = 2048 * (number + 1)
        entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", kind, b"\0\0\0", begin, 2048)
        data[446 + 16 * number : 462 + 16 * number] = entry
        data[begin * 512 : begin * 512 + len(head)] = head
    return bytes(data)


CASES: list[tuple[str, bytes, Profile, bool]] = [
    ("Windows", gpt((ESP, FAT), (RESERVED, b""), (DATA, NTFS)), Profile.WINDOWS, True),
    ("Windows, data alone", gpt((ESP, FAT), (DATA, NTFS)), Profile.WINDOWS, True),
    ("BitLocker", gpt((DATA, b"\xeb\x58\x90-FVE-FS-")), Profile.WINDOWS, True),
    ("Linux", gpt((ESP, FAT), (LINUX, b"")), Profile.LINUX, True),
    ("Linux with a FAT data partition", gpt((ESP, FAT), (DATA, FAT)), Profile.LINUX, True),
    ("Linux by BIOS", gpt((BIOS_BOOT, b""), (LINUX, b"")), Profile.LEGACY, True),
    ("GPT of nothing", gpt(), Profile.LINUX, False),
    ("MBR Linux", mbr((0x83, b"")), Profile.LEGACY, True),
    ("MBR Windows", mbr((0x07, NTFS)), Profile.LEGACY, True),
    ("MBR with ESP", mbr((0xEF, FAT), (0x83, b"")), Profile.LINUX, True),
    ("MBR of nothing", mbr(), Profile.LINUX, False),
    ("protective MBR alone", mbr((0xEE, b"")), Profile.LINUX, False),
    ("zeros", bytes(8 * MIB), Profile.LINUX, False),
]


@pytest.mark.parametrize(
    ("data", "profile", "sure"), [x[1:] for x in CASES], ids=[x[0] for x in CASES]
)
def test_guess(data: bytes, profile: Profile, sure: bool, tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "a,b.qcow2"
    raw.write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    found = profile_guess.guess(path)
    assert (found.profile, found.sure) == (profile, sure)
    assert found.reason
    assert sorted(tmp_path.iterdir()) == [path, raw]


def test_a_description_helps_where_the_disk_does_not() -> None:
    def read(sector: int, count: int) -> bytes:
        return bytes(512 * count)

    found = profile_guess.judge(read, "windows2019srv_64Guest")
    assert (found.profile, found.sure) == (Profile.WINDOWS, True)
    assert not profile_guess.judge(read, "Other Linux").sure


def test_odd_tables_are_survived() -> None:
    """Counts and places beyond all measure, and partitions that are not there."""
    head = bytearray(gpt((ESP, FAT), (DATA, b""))[: 34 * 512])
    head[1024 + 32 : 1024 + 40] = b"\xff" * 8

    def read(sector: int, count: int) -> bytes:
        if sector:
            raise PoclabError("it is not there")
        return bytes(head)

    assert profile_guess.judge(read).profile == Profile.LINUX
    for patch in (struct.pack("<QII", 1 << 63, 1, 128), struct.pack("<QII", 2, 1 << 31, 1 << 31)):
        head[512 + 72 : 512 + 88] = patch
        assert (
            not profile_guess.judge(read).sure or profile_guess.judge(read).profile == Profile.LINUX
        )
    head[512 + 72 : 512 + 88] = struct.pack("<QII", 2, 128, 0)
    assert not profile_guess.judge(read).sure


def test_sectors_are_the_guest_s(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"".join(bytes([n]) * 512 for n in range(8)))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    assert pool_disks.read_sectors(path, 3, 2) == bytes([3]) * 512 + bytes([4]) * 512
    with pytest.raises(PoclabError, match="cannot be read"):
        pool_disks.read_sectors(path, 1 << 30, 1)


# --- the root's file system -----------------------------------------------------------------

ROOT = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
BOOT = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
EXT4 = bytes(1080) + b"\x53\xef"
XFS = b"XFSB"
BTRFS = bytes(0x10040) + b"_BHRfS_M"


def labelled(kind: bytes, offset: int, label: bytes) -> bytes:
    """A file system's first bytes, with a label."""
    return kind.ljust(offset, b"\0") + label


@pytest.mark.parametrize(
    ("data", "found"),
    [
        # As osbuild lays it out: /boot is ext4 whatever the root is.
        (gpt((BIOS_BOOT, b""), (ESP, FAT), (BOOT, EXT4), (LINUX, XFS)), "xfs"),
        (gpt((ESP, FAT), (BOOT, EXT4), (LINUX, BTRFS)), "btrfs"),
        (gpt((ESP, FAT), (LINUX, EXT4)), "ext4"),
        # As systemd-repart and bootc do: the type says which one it is.
        (gpt((ESP, FAT), (LINUX, EXT4), (ROOT, XFS)), "xfs"),
        # Several of the same kind.
        (gpt((LINUX, XFS), (LINUX, XFS)), "xfs"),
        # Several kinds: the one with the label that osbuild gives the root.
        (gpt((LINUX, labelled(EXT4, 1144, b"root")), (LINUX, XFS)), "ext4"),
        (gpt((LINUX, EXT4), (LINUX, labelled(XFS, 108, b"root\0\0"))), "xfs"),
        (gpt((LINUX, EXT4), (LINUX, labelled(BTRFS, 0x1012B, b"root"))), "btrfs"),
        (gpt((LINUX, EXT4), (LINUX, XFS)), ""),
        (gpt((LINUX, b"LUKS\xba\xbe")), ""),
        (gpt((ESP, FAT)), ""),
        (gpt(), ""),
        (mbr((0x83, EXT4)), ""),
        (bytes(MIB), ""),
    ],
)
def test_the_root_file_system(data: bytes, found: str) -> None:
    assert profile_guess.root_of(lambda sector, count: data[sector * 512 :][: count * 512]) == found


def test_a_table_that_points_nowhere_has_no_root() -> None:
    data = bytearray(gpt((LINUX, XFS), (LINUX, EXT4)))
    struct.pack_into("<Q", data, 1024 + 32, 2**63)
    struct.pack_into("<Q", data, 1024 + 128 + 32, 2**30)

    def read(sector: int, count: int) -> bytes:
        if sector * 512 > len(data):
            raise PoclabError("beyond the end")
        return bytes(data[sector * 512 :][: count * 512])

    assert profile_guess.root_of(read) == ""


def test_the_root_file_system_of_a_disk(tmp_path: Path) -> None:
    raw, target = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(gpt((ESP, FAT), (LINUX, BTRFS)))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(target))
    assert profile_guess.root_filesystem(target) == "btrfs"
