"""Disks whose tables claim more data than their file holds, and files that change meanwhile.

Each function makes one file under the path it is given, and gives the path back. The refcounts
of the qcow2 files are right, so that `qemu-img check` finds nothing wrong with them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from poclab.core.units import MIB, TIB
from tests.support import disks
from tests.support.disks import made, patched

_CLUSTER = 64 * 1024
_ENTRIES = _CLUSTER // 8
_COMPRESSED = 1 << 62
# Where the six clusters of `qcow2_of_one_cluster` lie.
_REFCOUNTS, _BLOCK, _L1, _L2, _DATA = (number * _CLUSTER for number in range(1, 6))


def qcow2_of_one_cluster(path: Path, tables: int = 64, apparent: int = 0) -> Path:
    """A qcow2 file of 384 KiB, all of whose tables lead to one cluster.

    QEMU, docs/interop/qcow2.txt: with refcount_order 6 a refcount has 64 bits, enough to say how
    often the table and the cluster are named.

    Args:
        path: the file to make.
        tables: entries of the first-level table; each is worth 512 MiB.
        apparent: bytes the file is to have, the rest of them in a hole.
    """
    counts = [1, 1, 1, 1, tables, tables * _ENTRIES]
    clusters = [
        _qcow2_header(tables),
        struct.pack(">Q", _BLOCK),
        struct.pack(f">{len(counts)}Q", *counts),
        struct.pack(">Q", _L2) * tables,
        struct.pack(">Q", _DATA) * _ENTRIES,
        os.urandom(_CLUSTER),
    ]
    path.write_bytes(b"".join(each.ljust(_CLUSTER, b"\0") for each in clusters))
    if apparent:
        os.truncate(path, apparent)
    return path


def qcow2_of_endless_errors(path: Path, tables: int = 64) -> Path:
    """A qcow2 file of 384 KiB that `qemu-img check` prints 8,192 errors for each of its tables."""
    qcow2_of_one_cluster(path, tables)
    # No cluster begins between two.
    return patched(path, _L2, struct.pack(">Q", _DATA + 512) * _ENTRIES)


def text_then_binary(path: Path, begin: bytes = b"# a text\n", size: int = 2048) -> Path:
    """A file that begins like a text, as a VMDK descriptor does, and goes on as none.

    oslo.utils' inspector of VMDKs then asks for a type that it never read.
    """
    path.write_bytes((begin * 1024)[:1024] + b"\xff" * (size - 1024))
    return path


def qcow2_of_one_compressed_cluster(path: Path, tables: int = 64, *, packs: bool = False) -> Path:
    """The same with a compressed cluster.

    Args:
        path: the file to make.
        tables: entries of the first-level table.
        packs: whether its content is worth compressing.
    """
    content = bytes([7]) * _CLUSTER if packs else os.urandom(_CLUSTER)
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)  # QEMU inflates with a window of 4 KiB
    data = packer.compress(content) + packer.flush()
    # Cluster descriptor: the offset in the low 54 bits, above it the sectors after the first one.
    sectors = -(-len(data) // 512) - 1
    entry = _COMPRESSED | sectors << 54 | _DATA
    qcow2_of_one_cluster(path, tables)
    patched(path, _L2, struct.pack(">Q", entry) * _ENTRIES)
    return patched(path, _DATA, data)


def _qcow2_header(tables: int) -> bytes:
    size = tables * _ENTRIES * _CLUSTER
    return struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, size, 0, tables, _L1, _REFCOUNTS, 1, 0, 0,
        0, 0, 0, 6, 104,
    )  # fmt: skip


def of_one_block(path: Path, kind: str) -> Path:
    """A disk of another format, of 512 MiB, all of whose blocks are the same stored one.

    Args:
        path: the file to make.
        kind: "vmdk", "stream", "vdi", "vhd" or "vhdx", as in `tests.support.disks.WHOLE`.
    """
    made(path, kind, disks.raw(path.with_name("source"), 512 * MIB))
    return _ALIKE[kind](path)


def _vdi(path: Path) -> Path:
    return patched(path, 512, struct.pack("<I", 1) * 512)


def _vhd(path: Path) -> Path:
    """The block table lies at 1,536, of blocks of 2 MiB."""
    table = path.read_bytes()[1536 : 1536 + 4 * 256]
    first = next(entry for (entry,) in struct.iter_unpack(">I", table) if entry != 0xFFFFFFFF)
    return patched(path, 1536, struct.pack(">I", first) * 256)


def _vhdx(path: Path) -> Path:
    data = path.read_bytes()
    # [MS-VHDX] 2.2.3.2: the GUID of the table's region, which its offset follows.
    guid = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
    (start,) = struct.unpack_from("<Q", data, data.index(guid, 192 * 1024) + 16)
    count = 512 * MIB // vhdx_block_size(data)
    table = struct.unpack_from(f"<{count}Q", data, start)
    first = next(entry for entry in table if entry & 7 == 6)
    return patched(path, start, struct.pack("<Q", first) * count)


def vhdx_block_size(data: bytes) -> int:
    """Bytes of a VHDX's blocks, by its metadata ([MS-VHDX] 2.6.2.1)."""
    guid = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
    table = data.index(b"metadata")
    (offset,) = struct.unpack_from("<I", data, data.index(guid, table) + 16)
    return int(struct.unpack_from("<I", data, table + offset)[0])


def _vmdk(path: Path) -> Path:
    """Grain tables of 512 entries, one of which is filled with its first entry that is used."""
    data = path.read_bytes()
    (directory,) = struct.unpack_from("<Q", data, 56)
    (grain,) = struct.unpack_from("<Q", data, 20)
    tables = struct.unpack_from(f"<{512 * MIB // (grain * 512 * 512)}I", data, directory * 512)
    used = [table for table in tables if table]
    entries = struct.unpack_from("<512I", data, used[0] * 512)
    first = next(entry for entry in entries if entry > 1)
    patched(path, directory * 512, struct.pack("<I", used[0]) * len(tables))
    return patched(path, used[0] * 512, struct.pack("<I", first) * 512)


def vmdk_of_close_grains(path: Path, apart: int = 1, count: int = 2048) -> Path:
    """A compressed VMDK each of whose grains of 2 MiB begins close behind the one before it.

    No two of them are the same, and none is in a hole; but deflate makes at most 1,032 bytes of
    one, so they cannot lie one sector apart. Five are enough where they hold one byte, repeated.

    Args:
        path: the file to make.
        apart: sectors from one to the next.
        count: how many grains there are.
    """
    grain, tables = 4096, -(-count // 512)
    data = 4 + 4 * tables  # header, descriptor, directory, one sector each; tables of four
    header = struct.pack(
        "<4sIIQQQQIQQQB4sH", b"KDMV", 3, 0x30001, count * grain, grain, 1, 1, 512, 0, 2, data, 0,
        b"\n \r\n", 1,
    )  # fmt: skip
    descriptor = f"""# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="streamOptimized"
RW {count * grain} SPARSE "disk.vmdk"
"""
    directory = struct.pack(f"<{tables}I", *(4 + 4 * number for number in range(tables)))
    entries = struct.pack(f"<{count}I", *range(data, data + apart * count, apart))
    parts = [header, descriptor.encode(), directory, b""]
    head = b"".join(part.ljust(512, b"\0") for part in parts)
    pieces = [os.urandom(512)] * count
    if apart >= 5:
        packed = zlib.compress(b"\7" * grain * 512, 9)
        markers = (struct.pack("<QI", number * grain, len(packed)) for number in range(count))
        pieces = [(marker + packed).ljust(apart * 512, b"\0") for marker in markers]
    path.write_bytes(head + entries.ljust(2048 * tables, b"\0") + b"".join(pieces))
    return path


_ALIKE: dict[str, Callable[[Path], Path]] = {
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "vmdk": _vmdk,
    "stream": _vmdk,
}
SAID = "claim more data"
CLAIMS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("qcow2 of one cluster", qcow2_of_one_cluster, SAID),
    ("qcow2 of one cluster, sparse", lambda path: qcow2_of_one_cluster(path, 8, TIB), SAID),
    ("qcow2 of one compressed cluster", qcow2_of_one_compressed_cluster, SAID),
    ("qcow2 of one compressed cluster that packs well",
     lambda path: qcow2_of_one_compressed_cluster(path, packs=True), SAID),
    *((f"{kind} of one block", lambda path, kind=kind: of_one_block(path, kind), SAID)
      for kind in _ALIKE),
    ("vmdk of close grains", vmdk_of_close_grains, SAID),
    ("vmdk said to be compressed",
     lambda path: patched(vmdk_of_close_grains(path, 5), 77, b"\0"), SAID),
]  # fmt: skip
"""Name, maker and a part of the refusal of each."""
