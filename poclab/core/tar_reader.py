"""Read a tar archive from a stranger, front to back, in bounded memory.

Formats: ustar and pax (POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Extended Header"),
GNU long names and base-256 numbers (GNU tar manual, "Basic Tar Format"), `SCHILY.xattr.` records
(star(5)). Python's tarfile is not used: it holds extended headers of any length in memory,
accepts an archive without an end, and follows the sizes that sparse files claim. Nothing is
extracted: whoever reads gets names and values as data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

SECTOR = 512
# Linux holds at most 64 KiB of names and 64 KiB for each value (limits.h: XATTR_LIST_MAX,
# XATTR_SIZE_MAX); a path has 4 KiB. Real images need some 100 bytes.
MAX_EXTENDED = 1024 * 1024
# What a walk yields at most; the largest images have some 400,000 files with 100 bytes of text.
MAX_MEMBERS = 1_000_000
MAX_TEXT = 512 * 1024 * 1024
# Bytes that an attribute takes in memory besides its text: two objects and their place.
_ATTRIBUTE = 200
_XATTR = b"SCHILY.xattr."
# Name, mode, uid, gid, size, mtime, checksum, type, link, magic, major, minor, prefix.
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s64x8s8s155s12x")
_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")

Kind = Literal["file", "directory", "symlink", "hardlink", "char", "block", "fifo", "other"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
_ONE_FILE = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")


class TarError(ValueError):
    """The archive is damaged, truncated, or uses what poclab does not read; the text says why.

    Attributes:
        broken: whether a good copy of the same archive might be read.
    """

    def __init__(self, why: str, *, broken: bool = False) -> None:
        super().__init__(why)
        self.broken = broken


class Stream(Protocol):
    """What an archive is read from: a file, a pipe, a part of a file."""

    def read(self, size: int, /) -> bytes:
        """Read so many bytes, fewer at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move, as a file does; never called on what is not seekable."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive, as its headers describe it; nothing here has been checked.

    Attributes:
        name: its path, bytes that are not UTF-8 as surrogate escapes (PEP 383).
        kind: what it is.
        mode: permission bits.
        uid: the owner's number.
        gid: the group's number.
        mtime: nanoseconds since 1970.
        size: bytes of content; 0 unless it is a file.
        offset: where its content begins in the archive.
        target: where a symbolic or hard link points, in the same form as `name`.
        device: major and minor number of a device.
        xattrs: extended attributes by name (bytes, without a prefix of the archive's).
    """

    name: str
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    offset: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def text_size(self) -> int:
        """Bytes of its name, target and attributes, about."""
        xattrs = sum(len(key) + len(value) for key, value in self.xattrs.items())
        return len(self.name) + len(self.target) + xattrs


class Held:
    """Counts what is held in memory of an archive: files, and their names and attributes."""

    def __init__(self) -> None:
        self._files = self._text = 0

    def add(self, text: int) -> None:
        """Count a file.

        Args:
            text: bytes of its names and attributes, about.

        Raises:
            TarError: if that is more than memory is given for.
        """
        self._files += 1
        self._text += text
        if self._files > MAX_MEMBERS or self._text > MAX_TEXT:
            raise TarError(
                f"it has more than {MAX_MEMBERS:,} files, or too long names and attributes"
            )


class TarReader:
    """Walks an archive; between two members `read` gives the content of the current one.

    Args:
        stream: the archive, uncompressed, at its beginning.
        seekable: whether it is a file, in which content that nobody reads is skipped.
        ended: whether the two blocks of zeros at the end have to be there; many archives of other
            programs have one or none.
        most: bytes of extended headers that a member may have.

    Attributes:
        held: counts the members; who adds some that they imply counts these there.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        seekable: bool = False,
        ended: bool = True,
        most: int = MAX_EXTENDED,
    ) -> None:
        self._ended, self._most = ended, most
        self.held = Held()
        self._stream = stream
        self._end = stream.seek(0, 2) if seekable else None
        if seekable:
            stream.seek(0)
        self._at = 0
        self._left = 0  # bytes of the current member's content not read yet
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        """Walk the members.

        Raises:
            TarError: see there.
        """
        extended: dict[bytes, bytes] = {}
        held = 0
        while True:
            self._skip()
            block = self._stream.read(SECTOR)
            self._at += len(block)
            if not block.strip(b"\0") and not self._ended:
                return
            if len(block) < SECTOR:
                raise _truncated()
            if not block.strip(b"\0"):
                if self._exactly(SECTOR).strip(b"\0"):
                    raise _damaged(self._at - SECTOR)
                return
            header = _Fields.of(block, self._at - SECTOR)
            if header.type in b"xgLK":
                held += header.size
                if header.size < 0 or held > self._most:
                    raise TarError("an extended header in it is too long")
                data = self._exactly(header.size)
                self._exactly(-header.size % SECTOR)
                _extend(extended, header.type, data)
                continue
            member = header.member(extended, self._at)
            self.held.add(member.text_size + _ATTRIBUTE * len(member.xattrs))
            self._left, self._padding = member.size, -member.size % SECTOR
            yield member
            extended, held = {}, 0

    def read(self, most: int = -1) -> bytes:
        """Read on in the current member's content; empty at its end.

        Raises:
            TarError: the archive ends before the content does.
        """
        size = self._left if most < 0 else min(most, self._left)
        data = self._exactly(size)
        self._left -= size
        return data

    def _skip(self) -> None:
        rest = self._left + self._padding
        self._left = self._padding = 0
        if self._end is not None and rest:
            # A seek goes beyond the end without a word.
            if self._at + rest > self._end:
                raise _truncated()
            self._at = self._stream.seek(self._at + rest)
            return
        while rest:
            rest -= len(self._exactly(min(rest, 1 << 20)))

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size) if size else b""
        self._at += len(data)
        if len(data) != size:
            raise _truncated()
        return data


def _truncated() -> TarError:
    return TarError("it is truncated", broken=True)


def _damaged(at: int) -> TarError:
    return TarError(f"it is damaged at byte {at}", broken=True)


@dataclass(frozen=True)
class _Fields:
    """The fields of one header block."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    type: bytes
    target: bytes
    device: tuple[int, int]

    @classmethod
    def of(cls, block: bytes, at: int) -> _Fields:
        name, mode, uid, gid, size, mtime, check, kind, target, magic, major, minor, prefix = (
            _HEADER.unpack(block)
        )
        # The checksum counts its own eight bytes as blanks.
        if _number(check, at) != sum(block) - sum(check) + 8 * 0x20:
            raise _damaged(at)
        name = _text(name)
        if magic.startswith(b"ustar\0") and _text(prefix):
            name = _text(prefix) + b"/" + name
        device = (_number(major, at), _number(minor, at)) if kind in b"34" else (0, 0)
        return cls(
            name,
            _number(mode, at),
            _number(uid, at),
            _number(gid, at),
            _number(size, at),
            _number(mtime, at),
            kind,
            _text(target),
            device,
        )

    def member(self, extended: dict[bytes, bytes], offset: int) -> Member:
        """The member, with what its extended headers say."""
        kind: Kind = _KINDS.get(self.type, "other")
        name = extended.get(b"path", self.name)
        if kind == "file" and self.type == b"\0" and name.endswith(b"/"):
            kind = "directory"  # before ustar had a type of their own
        size = _decimal(extended, b"size", self.size)
        if size < 0:
            raise TarError(f"a member's size is {size}")
        mtime = _nanoseconds(extended[b"mtime"]) if b"mtime" in extended else self.mtime * 10**9
        links = kind in ("symlink", "hardlink")
        return Member(
            _decoded(name),
            kind,
            self.mode & 0o7777,
            _decimal(extended, b"uid", self.uid),
            _decimal(extended, b"gid", self.gid),
            mtime,
            size if kind == "file" else 0,
            offset,
            _decoded(extended.get(b"linkpath", self.target)) if links else "",
            self.device,
            {k.removeprefix(_XATTR): v for k, v in extended.items() if k.startswith(_XATTR)},
        )


def _extend(extended: dict[bytes, bytes], kind: bytes, data: bytes) -> None:
    """Add what an extended header says of the member after it."""
    if kind in b"LK":
        extended[b"path" if kind == b"L" else b"linkpath"] = _text(data)
        return
    for key, value in _records(data):
        if key.startswith(b"GNU.sparse."):
            raise TarError(f"an extended header in it has {_decoded(key)[:80]!a}")
        of_one = key in _ONE_FILE or key.startswith(_XATTR)
        if kind == b"g" and of_one:
            raise TarError(f"an extended header in it has {_decoded(key)[:80]!a}")
        if of_one and not value and key in _ONE_FILE:
            extended.pop(key, None)  # an empty value takes it back
        elif of_one:
            extended[key] = value


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of a pax header: `LENGTH KEY=VALUE` and a line break, LENGTH being all of it."""
    at = 0
    while at < len(data):
        match = _LENGTH.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise TarError("an extended header in it is invalid")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not key or not equals:
            raise TarError("an extended header in it is invalid")
        yield key, value
        at = end


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _number(data: bytes, at: int) -> int:
    """A number: octal digits, or big-endian binary where the highest bit is set (GNU)."""
    if data[0] in (0x80, 0xFF):
        return int.from_bytes(data[1:], "big", signed=data[0] == 0xFF)
    text = _text(data).strip(b" ")
    if not text:
        return 0
    if not re.fullmatch(rb"[0-7]+", text):
        raise _damaged(at)
    return int(text, 8)


def _decimal(extended: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    text = extended.get(key)
    if text is None:
        return otherwise
    if not re.fullmatch(rb"-?[0-9]{1,18}", text):
        raise TarError(f"a member's {key.decode()} is {_decoded(text)[:40]!a}")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise TarError(f"a member's mtime is {_decoded(text)[:40]!a}")
    fraction = (match[3] or b"")[:9].ljust(9, b"0")
    found = int(match[2]) * 10**9 + int(fraction)
    return -found if match[1] else found


def encoded(text: str) -> bytes:
    """The bytes of a name as the archive has it."""
    return text.encode("utf-8", "surrogateescape")
