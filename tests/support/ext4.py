"""Reads an ext4 inside a file: a second opinion, without a mount and without e2fsprogs.

As much of it as poclab's own disks have (kernel: Documentation/filesystems/ext4): 4 KiB blocks,
64-bit group descriptors, extents, linear directories, attributes in inodes and in blocks.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

BLOCK = 4096
ROOT = 2
_BITS = {1: "fifo", 2: "char", 4: "directory", 6: "block", 8: "file", 10: "symlink"}
_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}
XATTR = "SCHILY.xattr."


@dataclass(frozen=True)
class Node:
    """A file as the disk has it; times in nanoseconds, ACLs in the form of setxattr(2)."""

    number: int
    kind: str
    mode: int
    uid: int
    gid: int
    times: tuple[int, int, int]
    links: int
    size: int
    content: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    blocks: int


class Ext4:
    """An ext4.

    Args:
        disk: the file it is in.
        offset: where in it, in bytes.
    """

    def __init__(self, disk: Path, offset: int) -> None:
        self._file = disk.open("rb")
        self._offset = offset
        block = self._read(1024, 1024)
        assert struct.unpack_from("<H", block, 0x38)[0] == 0xEF53
        (self._per_group,) = struct.unpack_from("<I", block, 0x28)
        (self._inode_size,) = struct.unpack_from("<H", block, 0x58)
        (self._desc_size,) = struct.unpack_from("<H", block, 0xFE)

    def tree(self) -> dict[bytes, Node]:
        """Every file by path; the root directory is b""."""
        found: dict[bytes, Node] = {}
        todo = [(b"", ROOT)]
        while todo:
            path, number = todo.pop()
            assert path not in found
            node = found[path] = self.node(number)
            if node.kind == "directory":
                for name, child in self._entries(node):
                    todo.append((path + b"/" + name if path else name, child))
        return found

    def node(self, number: int) -> Node:
        """The file with an inode number."""
        raw = self._inode(number)
        mode, uid, size_low = struct.unpack_from("<HHI", raw)
        gid, links, blocks = struct.unpack_from("<HHI", raw, 24)
        (size_high,) = struct.unpack_from("<I", raw, 108)
        uid_high, gid_high = struct.unpack_from("<HH", raw, 120)
        size = size_low | size_high << 32
        kind = _BITS[mode >> 12]
        content = b""
        if kind == "symlink" and size < 60:
            content = raw[40 : 40 + size]
        elif kind in ("file", "directory", "symlink"):
            content = self._content(raw, size)
        return Node(
            number,
            kind,
            mode & 0o7777,
            uid | uid_high << 16,
            gid | gid_high << 16,
            (_time(raw, 8, 140), _time(raw, 12, 132), _time(raw, 16, 136)),
            links,
            size,
            content,
            _device(raw) if kind in ("char", "block") else (0, 0),
            self._xattrs(raw),
            blocks,
        )

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(self._offset + at)
        data = self._file.read(size)
        assert len(data) == size
        return data

    def _inode(self, number: int) -> bytes:
        group, index = divmod(number - 1, self._per_group)
        desc = self._read(BLOCK + group * self._desc_size, self._desc_size)
        low, high = struct.unpack_from("<I", desc, 8)[0], struct.unpack_from("<I", desc, 0x28)[0]
        return self._read((low | high << 32) * BLOCK + index * self._inode_size, self._inode_size)

    def _content(self, raw: bytes, size: int) -> bytes:
        assert struct.unpack_from("<I", raw, 32)[0] & 0x80000, "no extents"
        content = bytearray(-(-size // BLOCK) * BLOCK)
        for logical, length, physical in self._extents(raw[40:100]):
            data = self._read(physical * BLOCK, length * BLOCK)
            content[logical * BLOCK : (logical + length) * BLOCK] = data
        assert content[size:].strip(b"\0") == b"", "the rest of the last block is not zero"
        return bytes(content[:size])

    def _extents(self, node: bytes) -> Iterator[tuple[int, int, int]]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        assert magic == 0xF30A
        for at in range(12, 12 + entries * 12, 12):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                yield from self._extents(self._read((low | high << 32) * BLOCK, BLOCK))
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", node, at)
                yield logical, length, low | high << 32

    def _entries(self, directory: Node) -> Iterator[tuple[bytes, int]]:
        at = 0
        while at < len(directory.content):
            number, length, name_length, _ = struct.unpack_from("<IHBB", directory.content, at)
            name = directory.content[at + 8 : at + 8 + name_length]
            if number and name not in (b".", b".."):
                yield name, number
            at += length

    def _xattrs(self, raw: bytes) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        (extra,) = struct.unpack_from("<H", raw, 128)
        begin = 128 + extra
        if struct.unpack_from("<I", raw, begin)[0] == 0xEA020000:
            found |= _attributes(raw[begin + 4 :], 0, 0)
        low, high = struct.unpack_from("<I", raw, 104)[0], struct.unpack_from("<H", raw, 118)[0]
        if block := low | high << 32:
            found |= _attributes(self._read(block * BLOCK, BLOCK), 32, 0)
        return found


def _attributes(data: bytes, at: int, base: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while struct.unpack_from("<I", data, at)[0]:
        length, index, offset, _, size = struct.unpack_from("<BBHII", data, at)
        name = _PREFIXES[index] + data[at + 16 : at + 16 + length]
        value = data[base + offset : base + offset + size]
        found[name] = _acl(value) if index in (2, 3) else value
        at += 16 + -(-length // 4) * 4
    return found


def _acl(value: bytes) -> bytes:
    """An ACL on disk (fs/ext4/acl.h) in the form of setxattr(2) (linux/posix_acl_xattr.h)."""
    made, at = struct.pack("<I", 2), 4
    while at < len(value):
        tag, perm = struct.unpack_from("<HH", value, at)
        named = tag in (2, 8)  # ACL_USER, ACL_GROUP
        (who,) = struct.unpack_from("<I", value, at + 4) if named else (0xFFFFFFFF,)
        made += struct.pack("<HHI", tag, perm, who)
        at += 8 if named else 4
    return made


def _device(raw: bytes) -> tuple[int, int]:
    old, new = struct.unpack_from("<II", raw, 40)
    if old:
        return old >> 8, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def _time(raw: bytes, low: int, extra: int) -> int:
    seconds: int = struct.unpack_from("<i", raw, low)[0]
    more: int = struct.unpack_from("<I", raw, extra)[0]
    return (seconds + ((more & 3) << 32)) * 10**9 + (more >> 2)


# --- what has to be there ----------------------------------------------------------------


def expected(tar: Path) -> dict[bytes, Node]:
    """What has to be on the disk, as Python's own tarfile reads the archive."""
    found: dict[bytes, Node] = {}
    links: list[tuple[bytes, bytes]] = []
    with tarfile.open(tar) as archive:
        for member in archive:
            path = _clean(member.name)
            if member.islnk():
                links.append((path, _clean(member.linkname)))
                continue
            file = archive.extractfile(member) if member.isreg() else None
            content = file.read() if file else _raw(member.linkname) if member.issym() else b""
            xattrs = {
                _raw(key.removeprefix(XATTR)): _raw(value)
                for key, value in member.pax_headers.items()
                if key.startswith(XATTR)
            }
            time = _stored(Decimal(str(member.pax_headers.get("mtime", member.mtime))))
            found[path] = Node(
                0,
                KINDS[member.type],
                0o777 if member.issym() else member.mode & 0o7777,
                member.uid,
                member.gid,
                (time, time, time),
                1,
                len(content),
                content,
                (member.devmajor, member.devminor) if member.isdev() else (0, 0),
                xattrs,
                0,
            )
    for path, target in links:
        found[path] = found[target]
    return found


def _clean(name: str) -> bytes:
    return b"/".join(part for part in _raw(name).split(b"/") if part not in (b"", b"."))


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _stored(seconds: Decimal) -> int:
    """Nanoseconds, of the times that ext4 has (34 bits of seconds)."""
    least, most = Decimal(-(2**31)), Decimal(2**34 - 2**31 - 1)
    return int(max(least, min(seconds, most)) * 10**9)
