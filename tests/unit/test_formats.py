"""Disks in the formats of other programs: sound ones are taken, everything else is refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from poclab import disk
from poclab.errors import PoclabError
from poclab.formats import DiskInfo
from poclab.qcow2_header import virtual_size
from poclab.units import MIB, TIB
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


@pytest.mark.parametrize("kind", sorted(disks.WHOLE))
def test_takes(kind: str, tmp_path: Path) -> None:
    source = raw(tmp_path / "source.raw")
    path = made(tmp_path / "a,b:c.img", kind, source)
    found = disk.inspect(path)
    assert found.format == NAMES[kind]
    # VHD rounds up to a whole cylinder.
    assert 8 * MIB <= found.virtual_size < 8 * MIB + 512 * 1024
    assert found == disk.inspect(path, NAMES[kind])
    target = tmp_path / "copy.qcow2"
    most = disk.largest_copy(found, path.stat().st_size)
    disk.convert_to_qcow2(path, found.format, target, at_most=most)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, target)
    assert virtual_size(target) == found.virtual_size


def test_takes_a_stream_with_a_footer(tmp_path: Path) -> None:
    path = footed(tmp_path / "a.vmdk")
    found = disk.inspect(path)
    disk.convert_to_qcow2(path, found.format, tmp_path / "copy.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", f"{path}.raw", tmp_path / "copy.qcow2")
    assert found.packed


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
    """VHDX: an entry of the region table (16 bytes of header, entries of 32)."""
    return at("vhdx", 192 * 1024 + 16 + 32 * number + field, data)


def vhdx_log(path: Path) -> Path:
    made(path, "vhdx")
    for header in (64 * 1024, 128 * 1024):
        patched(path, header + 48, b"\1" * 16)
    return path


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
    ("VHDX region checksum", at("vhdx", 192 * 1024 + 4, b"\0\0\0\0"), "qemu-img cannot read"),
    ("VHDX headers", lambda path: patched(
        at("vhdx", 64 * 1024, b"XXXX")(path), 128 * 1024, b"XXXX"), "headers are damaged"),
    ("VHDX log", vhdx_log, "not closed properly"),
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
        disk.inspect(path)
    lines = refusal.value.lines()
    assert expected in str(refusal.value)
    assert "evil.img" in lines[0]
    assert len(lines) <= 3
    assert all("\n" not in line for line in lines)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhd", "vhd-fixed", "vhdx", "qcow2"])
def test_is_never_taken_for_raw(kind: str, tmp_path: Path) -> None:
    with pytest.raises(PoclabError, match="not raw"):
        disk.inspect(made(tmp_path / "a.img", kind), "raw")


def test_tables_that_name_the_same_data_again_do_not_fill_the_pool(tmp_path: Path) -> None:
    """A VDI of 512 blocks that are all the same stored one."""
    source = raw(tmp_path / "source", 512 * MIB)
    path = made(tmp_path / "a.vdi", "vdi", source)
    data = path.stat().st_size
    patched(path, 512, le32(1) * 512)
    found = DiskInfo("vdi", 512 * MIB)
    most = disk.largest_copy(found, data)
    assert most < 32 * MIB
    with pytest.raises(PoclabError, match="cannot be converted") as error:
        disk.convert_to_qcow2(path, "vdi", tmp_path / "copy.qcow2", at_most=most)
    assert "larger than" in error.value.why
    assert not (tmp_path / "copy.qcow2").exists()
