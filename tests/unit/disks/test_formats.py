"""Disks in the formats of other programs: sound ones are taken, everything else is refused."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from poclab.core.errors import PoclabError
from poclab.core.units import GIB, KIB, MIB, TIB
from poclab.disks import formats, inspection
from poclab.disks.formats import DiskInfo, opened
from poclab.disks.inspection import inspect_file
from poclab.disks.qcow2_header import virtual_size
from tests.hostile import disks as hostile
from tests.support import disks
from tests.support.disks import descriptor_patched, footed, made, patched, qemu_img, raw

NAMES = {
    "vmdk": "vmdk",
    "stream": "vmdk",
    "vdi": "vdi",
    "vdi-static": "vdi",
    "vhd": "vpc",
    "vhd-fixed": "vpc",
    "vhdx": "vhdx",
    "qcow2": "qcow2",
}


def copy(path: Path, found: DiskInfo, target: Path) -> None:
    """Copy an inspected disk, within the bounds that it has."""
    with opened(path, path.name) as window:
        inspection.copy(window, found, target)


@pytest.mark.parametrize("kind", sorted(disks.WHOLE))
def test_takes(kind: str, tmp_path: Path) -> None:
    source = raw(tmp_path / "source.raw")
    path = made(tmp_path / "a,b:c.img", kind, source)
    found = inspect_file(path)
    assert found.format == NAMES[kind]
    # VHD rounds up to a whole cylinder.
    assert 8 * MIB <= found.virtual_size < 8 * MIB + 512 * 1024
    assert found == inspect_file(path, NAMES[kind])
    target = tmp_path / "copy.qcow2"
    copy(path, found, target)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, target)
    assert virtual_size(target) == found.virtual_size


def test_takes_a_stream_with_a_footer(tmp_path: Path) -> None:
    path = footed(tmp_path / "a.vmdk")
    copy(path, inspect_file(path), tmp_path / "copy.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", f"{path}.raw", tmp_path / "copy.qcow2")


def content(path: Path) -> Path:
    """A raw disk of 48 MiB: data that does not pack, data that packs well, holes, odd pieces."""
    raw(path, 48 * MIB)
    patched(path, 8 * MIB, b"\7" * 24 * MIB)
    for number in range(200):
        patched(path, 33 * MIB + number * 70_000, bytes([number + 1]) * 700)
    return path


QCOW2 = {
    "clusters of 512 bytes": ("-o", "cluster_size=512"),
    "clusters of 4 KiB": ("-o", "cluster_size=4k"),
    "clusters of 2 MiB": ("-o", "cluster_size=2M"),
    "version 2": ("-o", "compat=0.10"),
    "lazy refcounts": ("-o", "lazy_refcounts=on"),
    "small refcounts": ("-o", "refcount_bits=1"),
    "extended L2": ("-o", "extended_l2=on"),
    "extended L2, 16 KiB": ("-o", "extended_l2=on,cluster_size=16k"),
    "deflate": ("-c",),
    "deflate, 2 MiB": ("-c", "-o", "cluster_size=2M"),
    "deflate, 512 bytes": ("-c", "-o", "cluster_size=512"),
    "zstd": ("-c", "-o", "compression_type=zstd"),
    "zstd, 2 MiB": ("-c", "-o", "compression_type=zstd,cluster_size=2M"),
    "extended L2, deflate": ("-c", "-o", "extended_l2=on"),
    "tables for everything": ("-o", "preallocation=metadata"),
    "all of it": ("-S", "0"),
}


@pytest.mark.parametrize("options", QCOW2.values(), ids=QCOW2)
def test_takes_every_honest_qcow2(options: tuple[str, ...], tmp_path: Path) -> None:
    source, path = content(tmp_path / "source.raw"), tmp_path / "a.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, source, path)
    if "refcount_bits=1" not in options:
        qemu_img("snapshot", "-c", "old", path)
    argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 300k", "-c", "write -z 9M 1M", str(path)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    copy(path, inspect_file(path), tmp_path / "copy.qcow2")
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", path, tmp_path / "copy.qcow2")


@pytest.mark.parametrize("kind", sorted(disks.WHOLE))
def test_takes_disks_that_pack_well_and_their_holes(kind: str, tmp_path: Path) -> None:
    source = content(tmp_path / "source.raw")
    path = made(tmp_path / "a.img", kind, source)
    subprocess.run(["fallocate", "--dig-holes", path], check=True, timeout=60)
    copy(path, inspect_file(path), tmp_path / "copy.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, tmp_path / "copy.qcow2")


def test_a_table_in_a_hole_takes_no_time(tmp_path: Path) -> None:
    """The file has 8 TiB, nearly all of it a hole that its tables lie in."""
    path = hostile.qcow2_of_one_cluster(tmp_path / "a.qcow2", 8, 8 * TIB)
    holes = b"".join(struct.pack(">Q", (1 << 40) + number * 65536) for number in range(8))
    patched(path, 3 * 65536, holes)
    began = time.monotonic()
    with opened(path, "a") as window:
        assert formats.read(window) == DiskInfo("qcow2", 4 * GIB, 0)
    assert time.monotonic() - began < 5


def test_a_table_cut_in_the_middle_of_an_entry(tmp_path: Path) -> None:
    """Entries of 128 bits, and a file that ends after 64 of the last one."""
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "extended_l2=on", path, "8M")
    l2 = 4 * 65536
    patched(path, 3 * 65536, struct.pack(">Q", l2))
    for size in (8, 16, 24, 65528):
        with path.open("ab") as file:
            os.truncate(path, l2)
            file.write(b"\1" * size)
        with pytest.raises(PoclabError, match="truncated"):
            inspect_file(path)


def cut(kind: str, size: int) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        made(path, kind)
        os.truncate(path, path.stat().st_size - size)
        return path

    return make


def at(kind: str, offset: int, data: bytes) -> Callable[[Path], Path]:
    return lambda path: patched(made(path, kind), offset, data)


def le32(value: int) -> bytes:
    return struct.pack("<I", value)


def le64(value: int) -> bytes:
    return struct.pack("<Q", value)


def flat(path: Path) -> Path:
    """A descriptor and its data in another file, as qemu-img makes them."""
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "8M")
    return path


def described(old: bytes, new: bytes) -> Callable[[Path], Path]:
    return lambda path: descriptor_patched(made(path, "vmdk"), old, new)


def footer(offset: int, data: bytes) -> Callable[[Path], Path]:
    return lambda path: patched(footed(path), offset - 1024, data)


def cut_stream(path: Path) -> Path:
    footed(path)
    os.truncate(path, path.stat().st_size // 2)
    return path


def text_mode(path: Path) -> Path:
    return patched(made(path, "vmdk"), 73, b"\n\n\n\n")


def capacity_zero(path: Path) -> Path:
    """No size, so that QEMU would go by the descriptor's extents."""
    descriptor_patched(made(path, "vmdk"), b"SPARSE", b"FLAT")
    return patched(path, 12, le64(0))


def vhd(offset: int, data: bytes) -> Callable[[Path], Path]:
    return lambda path: disks.vhd_patched(made(path, "vhd"), offset, data)


def vhd_header(offset: int, data: bytes) -> Callable[[Path], Path]:
    return lambda path: disks.vhd_header_patched(made(path, "vhd"), offset, data)


def begins_like_qcow2(path: Path) -> Path:
    return patched(made(path, "vhd-fixed"), 0, b"QFI\xfb\0\0\0\3")


def region(number: int, field: int, data: bytes) -> Callable[[Path], Path]:
    """VHDX: an entry of the region tables (16 bytes of header, entries of 32)."""
    offset = 16 + 32 * number + field
    return lambda path: disks.vhdx_patched(made(path, "vhdx"), offset, data)


def vhdx_headers(offset: int, data: bytes, *which: int) -> Callable[[Path], Path]:
    """VHDX: one of the headers or both, with the right checksum."""
    where = tuple(disks.VHDX_HEADERS[number] for number in which)
    return lambda path: disks.vhdx_patched(made(path, "vhdx"), offset, data, where)


def vhdx_headers_of_one_number(path: Path) -> Path:
    vhdx_headers(8, le64(9), 0, 1)(path)
    return disks.vhdx_patched(path, 100, b"x", disks.VHDX_HEADERS[:1])


def vhdx_block(path: Path) -> Path:
    """An entry of the block table that leads out of the file."""
    made(path, "vhdx")
    # [MS-VHDX] 2.2.3.2: the GUID of the table's region, which its offset follows.
    data = path.read_bytes()
    guid = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
    return patched(path, *_entry(data, data.index(guid, 192 * 1024) + 16))


def _entry(data: bytes, at: int) -> tuple[int, bytes]:
    (start,) = struct.unpack_from("<Q", data, at)
    return start, le64(1 << 40 | 6)


def no_metadata(path: Path) -> Path:
    made(path, "vhdx")
    data = path.read_bytes()
    return patched(path, data.index(b"metadata"), b"METADATA")


HOSTILE: list[tuple[str, Callable[[Path], Path], str]] = [
    ("VMDK flat", flat, "other files (monolithicFlat)"),
    ("VMDK split", described(b"monolithicSparse", b"twoGbMaxExtentFlat"), "other files"),
    ("VMDK ESXi", lambda path: patched(raw(path), 0, b"COWD"), "several formats"),
    ("VMDK parent", described(b"# The Disk", b'parentFileNameHint="/etc/x"\n#'), "differences"),
    ("VMDK extent elsewhere", described(b'SPARSE "', b'SPARSE "/etc/'), "not acceptable"),
    ("VMDK odd descriptor", described(b"# The Disk", b"surprise surprise\n#"), "not acceptable"),
    ("VMDK no extents", described(b"RW ", b"# "), "not acceptable"),
    ("VMDK no capacity", capacity_zero, "at least one byte"),
    ("VMDK capacity", at("vmdk", 12, le64(65 * TIB // 512)), "at most 64.0 TiB"),
    ("VMDK huge capacity", at("vmdk", 12, le64(1 << 62)), "at most 64.0 TiB"),
    ("VMDK many tables", at("vmdk", 12, le64(60 * TIB // 512)), "beyond its end"),
    ("VMDK directory", at("vmdk", 56, le64(1 << 40)), "beyond its end"),
    ("VMDK grain", at("vmdk", 20, le64(3)), "makes no sense"),
    ("VMDK grain table", at("vmdk", 44, le32(1 << 30)), "makes no sense"),
    ("VMDK version", at("vmdk", 4, le32(9)), "makes no sense"),
    ("VMDK text mode", text_mode, "text mode"),
    ("VMDK no footer", at("stream", 56, b"\xff" * 8), "footer"),
    ("VMDK footer's capacity", footer(12, le64(1 << 30)), "contradicts"),
    ("VMDK footer's signature", footer(0, b"XXXX"), "footer"),
    ("VMDK footer's descriptor", footer(28, le64(99)), "footer"),
    ("VMDK footer of a footer", footer(56, b"\xff" * 8), "footer"),
    ("VMDK footer's directory", footer(56, le64(1 << 40)), "beyond its end"),
    ("VMDK stream cut", cut_stream, "footer"),
    ("VMDK cut", cut("vmdk", MIB), "damaged"),
    ("VMDK header alone", cut("vmdk", MIB + 65536 + 65536 - 512), "not acceptable"),
    ("VDI huge blocks", at("vdi", 384, le32(0x3FFFFFFF)), "does not fit"),
    ("VDI huge blocks and size", lambda path: patched(
        at("vdi", 368, le64(60 * TIB))(path), 384, le32(60 * 1024 * 1024)), "beyond its end"),
    ("VDI huge size", at("vdi", 368, le64(1 << 62)), "at most 64.0 TiB"),
    ("VDI block size", at("vdi", 376, le32(1)), "makes no sense"),
    ("VDI extra", at("vdi", 380, le32(512)), "makes no sense"),
    ("VDI version", at("vdi", 68, le32(2)), "version"),
    ("VDI difference", at("vdi", 76, le32(4)), "differences"),
    ("VDI parent", at("vdi", 440, b"\1" * 16), "differences"),
    ("VDI map", at("vdi", 340, le32(0xFFFFFF00)), "beyond its end"),
    ("VDI block", at("vdi", 512 + 4 * 2, le32(1 << 20)), "block lies beyond"),
    ("VDI cut", cut("vdi", MIB), "beyond its end"),
    ("VHD difference", vhd(60, struct.pack(">I", 4)), "differences"),
    ("VHD kind", vhd(60, struct.pack(">I", 7)), "makes no sense"),
    ("VHD size", vhd(48, struct.pack(">Q", 1 << 62)), "at most 64.0 TiB"),
    ("VHD larger", vhd(48, struct.pack(">Q", 1 << 40)), "too short"),
    ("VHD checksum", at("vhd", -512 + 48, b"\1"), "checksum"),
    ("VHD two footers", at("vhd", 30, b"x"), "differ"),
    ("VHD header checksum", at("vhd", 512 + 32, b"\1"), "checksum"),
    ("VHD block size", vhd_header(32, struct.pack(">I", 3)), "makes no sense"),
    ("VHD huge table", vhd_header(28, struct.pack(">I", 0x7FFFFFFF)), "beyond its end"),
    ("VHD table", vhd_header(16, struct.pack(">Q", 1 << 50)), "beyond its end"),
    ("VHD block", at("vhd", 1536 + 4, struct.pack(">I", 0x7FFFFFF0)), "block lies beyond"),
    ("VHD cut", cut("vhd", 512), "footer"),
    ("VHD fixed cut", lambda path: disks.vhd_patched(
        made(path, "vhd-fixed"), 48, struct.pack(">Q", 16 * MIB)), "not as long"),
    ("VHD and qcow2", begins_like_qcow2, "several formats"),
    ("VHDX regions", at("vhdx", 192 * 1024, b"XXXX"), "makes no sense"),
    ("VHDX many regions", at("vhdx", 192 * 1024 + 8, le32(1 << 20)), "makes no sense"),
    ("VHDX region", region(0, 16, le64(1 << 60)), "beyond its end"),
    ("VHDX long region", region(0, 24, le32(0xFFFFFFFF)), "beyond its end"),
    ("VHDX region checksum", at("vhdx", 192 * 1024 + 4, b"\0\0\0\0"), "makes no sense"),
    ("VHDX copy of the regions", at("vhdx", 256 * 1024 + 4, b"\0\0\0\0"), "differs from its copy"),
    ("VHDX first header", at("vhdx", 64 * 1024 + 4, b"\0\0\0\0"), "headers is damaged"),
    ("VHDX second header", at("vhdx", 128 * 1024 + 4, b"\0\0\0\0"), "headers is damaged"),
    ("VHDX spare header", at("vhdx", 64 * 1024 + 100, b"x"), "headers is damaged"),
    ("VHDX header's version", vhdx_headers(66, b"\2", 0), "headers is damaged"),
    ("VHDX headers of one number", vhdx_headers_of_one_number, "contradict"),
    ("VHDX headers", lambda path: patched(
        at("vhdx", 64 * 1024, b"XXXX")(path), 128 * 1024, b"XXXX"), "headers are damaged"),
    ("VHDX log", vhdx_headers(48, b"\1" * 16, 0, 1), "not closed properly"),
    ("VHDX metadata", no_metadata, "makes no sense"),
    ("VHDX block", vhdx_block, "block lies beyond"),
    ("VHDX cut", cut("vhdx", 7 * MIB), "beyond its end"),
    ("VHDX identifier alone", lambda path: _file(path, b"vhdxfile" + bytes(MIB)), "damaged"),
    ("VDI and ISO", at("vdi-static", 32768, b"\1CD001\1\0"), "several formats"),
    ("VDI and MBR", at("vdi", 510, b"\x55\xaa"), "several formats"),
    ("gzip", lambda path: _file(path, b"\x1f\x8b\x08" + bytes(MIB)), "gzip"),
    ("zstd", lambda path: _file(path, b"\x28\xb5\x2f\xfd" + bytes(MIB)), "zstd"),
    ("OVF", lambda path: _file(path, disks.ovf("a.vmdk")), "OVF"),
    ("tar", lambda path: disks.packed(path, ("a", b"x")), "tar"),
]  # fmt: skip


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "expected"), [x[1:] for x in HOSTILE], ids=[x[0] for x in HOSTILE]
)
def test_refuses(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    path = make(tmp_path / "evil.img")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PoclabError) as refusal:
        inspect_file(path)
    lines = refusal.value.lines()
    assert expected in str(refusal.value)
    assert "evil.img" in lines[0]
    assert len(lines) <= 3
    assert all("\n" not in line for line in lines)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhd", "vhd-fixed", "vhdx", "qcow2"])
def test_is_never_taken_for_raw(kind: str, tmp_path: Path) -> None:
    with pytest.raises(PoclabError, match="not raw"):
        inspect_file(made(tmp_path / "a.img", kind), "raw")


@pytest.mark.parametrize(
    ("make", "expected"), [x[1:] for x in hostile.CLAIMS], ids=[x[0] for x in hostile.CLAIMS]
)
def test_more_data_than_the_file_holds_is_refused_in_seconds(
    make: Callable[[Path], Path], expected: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "evil.img")
    began = time.monotonic()
    with pytest.raises(PoclabError, match=expected):
        inspect_file(path)
    assert time.monotonic() - began < 5


def test_grains_that_are_packed_as_well_as_can_be_are_taken(tmp_path: Path) -> None:
    path = hostile.vmdk_of_close_grains(tmp_path / "good.vmdk", apart=5, count=32)
    found = inspect_file(path)
    assert (found.format, found.virtual_size, found.data) == ("vmdk", 64 * MIB, 64 * MIB)
    copy(path, found, tmp_path / "copy.qcow2")
    qemu_img("compare", path, tmp_path / "copy.qcow2")


@pytest.mark.parametrize("size", [2048, 600 * KIB, 3 * MIB])
@pytest.mark.parametrize("begin", [b"x", b"#!/bin/sh\n", b"# Disk DescriptorFile\n"])
def test_what_an_inspector_fails_on_is_refused(begin: bytes, size: int, tmp_path: Path) -> None:
    path = hostile.text_then_binary(tmp_path / "a.img", begin, size)
    for expected in (None, "raw", "vmdk"):
        with pytest.raises(PoclabError, match="not a disk poclab takes") as error:
            inspect_file(path, expected)
        assert "cannot be judged" in error.value.why
        assert error.value.fix


def test_a_copy_does_not_become_larger_than_the_disk_allows(tmp_path: Path) -> None:
    """What the readers let pass all the same is stopped while it is copied."""
    path = hostile.qcow2_of_one_cluster(tmp_path / "evil.qcow2")
    found = DiskInfo("qcow2", 32 * 1024 * MIB, 0)
    assert inspection.largest_copy(found) == 24 * MIB
    with pytest.raises(PoclabError, match="cannot be converted") as error:
        copy(path, found, tmp_path / "copy.qcow2")
    assert "larger than the 24 MiB" in error.value.why
    assert not (tmp_path / "copy.qcow2").exists()
