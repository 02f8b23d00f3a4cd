"""Disks of other programs' formats, made here: sound ones by qemu-img, hostile ones by hand."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path

from poclab.core.units import KIB, MIB
from poclab.disks.formats.crc32c import crc32c
from poclab.disks.formats.vhd import checksum_of

WHOLE = {
    "vmdk": ("vmdk", "-o", "subformat=monolithicSparse"),
    "stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("vdi",),
    "vdi-static": ("vdi", "-o", "static=on"),
    "vhd": ("vpc",),
    "vhd-fixed": ("vpc", "-o", "subformat=fixed"),
    "vhdx": ("vhdx",),
    "qcow2": ("qcow2",),
}


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, timeout=60)


def raw(path: Path, size: int = 8 * MIB, kind: int = 0x83) -> Path:
    """A raw disk with an MBR of one partition, and 1 MiB of data."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", kind, b"\0\0\0", 2048, 4096)
    with path.open("wb") as file:
        file.write(b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa")
        file.seek(2 * MIB)
        file.write(os.urandom(MIB))
        file.truncate(size)
    return path


def made(path: Path, kind: str, source: Path | None = None) -> Path:
    """A disk of a kind in `WHOLE`, with the content of a raw disk."""
    source = source or raw(path.with_name(f"{path.name}.raw"))
    form, *options = WHOLE[kind]
    qemu_img("convert", "-f", "raw", "-O", form, *options, source, path)
    return path


def patched(path: Path, offset: int, data: bytes) -> Path:
    """The file with some bytes replaced; a negative offset counts from its end."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        file.write(data)
    return path


def footed(path: Path) -> Path:
    """A streamOptimized VMDK as VMware writes it: the header leaves its place to a footer."""
    made(path, "stream")
    data = path.read_bytes()
    header = data[:512]
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    with path.open("r+b") as file:
        file.seek(56)  # SparseExtentHeader.gdOffset
        file.write(b"\xff" * 8)
        file.seek(0, os.SEEK_END)
        file.write(marker + header + bytes(512))
    return path


def descriptor_patched(path: Path, old: bytes, new: bytes) -> Path:
    """A VMDK whose embedded descriptor says something else; what follows moves along."""
    data = path.read_bytes()
    text = data[512 : 512 + 20 * 512].rstrip(b"\0")
    assert old in text
    return patched(path, 512, text.replace(old, new).ljust(20 * 512, b"\0"))


def vhd_patched(path: Path, offset: int, data: bytes) -> Path:
    """A VHD whose footer (and the copy at the beginning) says something else, checksums right."""
    for at in (0, path.stat().st_size - 512):
        footer = bytearray(path.read_bytes()[at : at + 512])
        if footer[:8] == b"conectix":
            footer[offset : offset + len(data)] = data
            footer[64:68] = struct.pack(">I", checksum_of(bytes(footer), 64))
            patched(path, at, bytes(footer))
    return path


def vhd_header_patched(path: Path, offset: int, data: bytes) -> Path:
    """A dynamic VHD whose header says something else, checksum right."""
    header = bytearray(path.read_bytes()[512:1536])
    header[offset : offset + len(data)] = data
    header[36:40] = struct.pack(">I", checksum_of(bytes(header), 36))
    return patched(path, 512, bytes(header))


# [MS-VHDX] 2.2: two headers and two region tables, each with its checksum in bytes 4 to 7.
VHDX_HEADERS = ((64 * KIB, 4 * KIB), (128 * KIB, 4 * KIB))
VHDX_REGIONS = ((192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB))


def vhdx_patched(
    path: Path, offset: int, data: bytes, where: tuple[tuple[int, int], ...] = VHDX_REGIONS
) -> Path:
    """A VHDX whose headers or region tables say something else, checksums right.

    Args:
        path: the file.
        offset: where in each of them.
        data: what is there.
        where: which of them.
    """
    content = path.read_bytes()
    for start, size in where:
        each = bytearray(content[start : start + size])
        each[offset : offset + len(data)] = data
        each[4:8] = bytes(4)
        each[4:8] = struct.pack("<I", crc32c(bytes(each)))
        patched(path, start, bytes(each))
    return path


OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
 <References>{files}</References>
 <DiskSection><Info>disks</Info>{disks}</DiskSection>
 <VirtualSystem ovf:id="vm"><Info>a VM</Info>
  <OperatingSystemSection ovf:id="{system}"><Info>OS</Info><Description>{text}</Description>
  </OperatingSystemSection>
 </VirtualSystem>
</Envelope>
"""


def ovf(*names: str, extra: str = "", parent: str = "", text: str = "Other Linux") -> bytes:
    """An OVF of disks in these files."""
    files = "".join(
        f'<File ovf:id="file{n}" ovf:href="{name}" {extra}/>' for n, name in enumerate(names)
    )
    disks = "".join(
        f'<Disk ovf:diskId="vmdisk{n}" ovf:fileRef="file{n}" ovf:capacity="8" {parent}/>'
        for n in range(len(names))
    )
    return OVF.format(files=files, disks=disks, system=101, text=text).encode()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """A header for a tar archive."""
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        found.linkname = "/etc/shadow"
    return found


def packed(
    path: Path,
    *members: tuple[str, bytes | Path] | tarfile.TarInfo,
    form: int = tarfile.USTAR_FORMAT,
) -> Path:
    """A tar archive of members, or of headers alone."""
    with tarfile.open(path, "w", format=form) as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
                continue
            name, content = one
            data = content.read_bytes() if isinstance(content, Path) else content
            archive.addfile(member(name, len(data)), io.BytesIO(data))
    return path
