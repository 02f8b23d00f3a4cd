"""OVA files: a tar archive of an OVF, its disks and a manifest of digests.

DMTF DSP0243, "Open Virtualization Format Specification", 2 (packages). Nothing is extracted:
the archive's headers are walked, the OVF says which member is the disk, and whoever wants
the disk reads it where it lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from poclab.core import safe_xml
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.core.tar_reader import TarError, TarReader
from poclab.core.units import KIB, MIB
from poclab.disks.formats.base import AGAIN, SECTOR, Part, Window

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_MAX_MEMBERS = 1000
_MAX_TEXT = MIB  # an OVF has some 10 KiB
_MAX_EXTENDED = 64 * KIB
_ALGORITHMS = {"sha1": 40, "sha256": 64, "sha512": 128}
_LINE = re.compile(r"\s*(SHA-?(?:1|256|512))\s*\((.{1,255})\)\s*=\s*([0-9a-fA-F]+)\s*", re.I)


@dataclass(frozen=True)
class Member:
    """A regular file in the archive.

    Attributes:
        name: its name, without any directory.
        offset: where its bytes begin in the archive.
        size: how many.
    """

    name: str
    offset: int
    size: int

    @property
    def part(self) -> Part:
        """Its place in whole sectors, as a disk is read; the archive pads it to as many."""
        return Part(self.offset, -(-self.size // SECTOR) * SECTOR)


@dataclass(frozen=True)
class Digest:
    """What the archive's manifest says of a member."""

    member: Member
    algorithm: str
    value: str


@dataclass(frozen=True)
class Ova:
    """What an archive holds that is of use.

    Attributes:
        disk: the disk chosen.
        digests: what the manifest says of the OVF and the disk; empty without a manifest.
        system: what the OVF calls the operating system, or an empty string.
    """

    disk: Member
    digests: tuple[Digest, ...]
    system: str


def look(window: Window, wanted: str | None = None) -> Ova:
    """Read an OVA's headers, its OVF and its manifest, and choose the disk.

    Args:
        window: the archive.
        wanted: the disk's file name or identifier; may be left out when there is one disk.

    Raises:
        UsageError: there are several disks, or none of that name.
        PoclabError: it is no OVA, damaged, or holds what an OVA does not.
    """
    members = _members(window)
    described = _only(window, members, ".ovf")
    if described is None:
        raise _refused(window, "it is a tar archive without an OVF, so it is no OVA")
    root = _parse(window, described)
    disk = _choose(window, members, _disks(window, root), wanted)
    manifest = _only(window, members, ".mf")
    digests: tuple[Digest, ...] = ()
    if manifest is not None:
        digests = _digests(window, members, manifest, (described, disk))
    return Ova(disk, digests, _system(root))


def _refused(window: Window, why: str, fix: str = "") -> PoclabError:
    return PoclabError(f"{window.name} is not an OVA poclab takes", why=why, fix=fix)


# --- the archive ------------------------------------------------------------------------


def _members(window: Window) -> dict[str, Member]:
    """The archive's members by name; regular files only, each name once."""
    found: dict[str, Member] = {}
    reader = TarReader(_Stream(window), seekable=True, ended=False, most=_MAX_EXTENDED)
    try:
        for entry in reader:
            if entry.kind != "file":
                raise _refused(window, f"{shown(entry.name)} in it is no regular file")
            name = _plain_name(window, entry.name)
            member = Member(name, entry.offset, entry.size)
            if not window.holds(member.offset, member.part.size):
                raise _refused(window, f"it is truncated: {shown(name)} goes beyond its end", AGAIN)
            if name in found:
                raise _refused(window, f"it holds {shown(name)} twice")
            found[name] = member
            if len(found) > _MAX_MEMBERS:
                raise _refused(window, f"it has more than {_MAX_MEMBERS} members")
    except TarError as error:
        raise _refused(window, str(error), AGAIN if error.broken else "") from error
    return found


class _Stream:
    """A window as the stream that `TarReader` reads."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._at = 0

    def read(self, size: int, /) -> bytes:
        data = self._window.read(self._at, size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (self._window.size if whence else 0)
        return self._at


def _plain_name(window: Window, text: str) -> str:
    name = text.removeprefix("./")
    if not name or name != PurePosixPath(name).name or name == ".." or not name.isprintable():
        raise _refused(window, f"a member's name is {shown(text)}", "members have plain names")
    return name


def _only(window: Window, members: dict[str, Member], suffix: str) -> Member | None:
    """The one member with a suffix, if any."""
    found = [member for name, member in members.items() if name.lower().endswith(suffix)]
    if len(found) > 1:
        names = ", ".join(shown(member.name) for member in found[:5])
        raise _refused(window, f"it holds several {suffix} files: {names}")
    return found[0] if found else None


def _text(window: Window, member: Member) -> str:
    if member.size > _MAX_TEXT:
        raise _refused(window, f"{shown(member.name)} in it is too large")
    try:
        # One encoding: what is looked for in the text is then what the parser sees.
        return window.read(member.offset, member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(window, f"{shown(member.name)} in it is not UTF-8") from error


# --- the OVF ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Disk:
    """A disk as the OVF describes it: its identifier and its file's name."""

    ident: str
    file: str


def _parse(window: Window, member: Member) -> Element:
    try:
        root = safe_xml.parse(_text(window, member))
    except ValueError as error:
        raise _refused(window, f"cannot read {shown(member.name)} in it: {error}") from error
    if _local(root.tag) != "Envelope":
        raise _refused(window, f"{shown(member.name)} in it is no OVF")
    return root


def _local(tag: str) -> str:
    """A name without its namespace; each version of OVF has another one."""
    return tag.rpartition("}")[2]


def _attributes(element: Element) -> dict[str, str]:
    return {_local(key): value for key, value in element.attrib.items()}


def _under(root: Element, section: str, tag: str) -> Iterator[dict[str, str]]:
    for child in root:
        if _local(child.tag) == section:
            for item in child:
                if _local(item.tag) == tag:
                    yield _attributes(item)


def _disks(window: Window, root: Element) -> list[_Disk]:
    """The disks that have a file."""
    files = {file.get("id", ""): file for file in _under(root, "References", "File")}
    found = []
    for disk in _under(root, "DiskSection", "Disk"):
        file = files.get(disk.get("fileRef", ""))
        if file is None:  # an empty disk
            continue
        ident, href = disk.get("diskId", ""), file.get("href", "")
        if disk.get("parentRef"):
            raise _refused(window, f"disk {shown(ident)} holds the differences to another one")
        if file.get("compression", "identity") not in ("", "identity") or file.get("chunkSize"):
            raise _refused(
                window,
                f"{shown(href)} in it is compressed or split by the archive",
                "export it again without compression, or unpack it and give the disk",
            )
        found.append(_Disk(ident, href))
    return found


def _choose(
    window: Window, members: dict[str, Member], disks: list[_Disk], wanted: str | None
) -> Member:
    names = ", ".join(shown(disk.file) for disk in disks[:10])
    if not disks:
        raise _refused(window, "its OVF describes no disk")
    if wanted is not None:
        disks = [disk for disk in disks if wanted in (disk.file, disk.ident)]
        if len(disks) != 1:
            raise UsageError(
                f"{window.name} has no disk {shown(wanted)}",
                why=f"its disks are {names}",
                fix="choose one with --disk",
            )
    if len(disks) > 1:
        raise UsageError(
            f"{window.name} has several disks",
            why=f"they are {names}",
            fix="choose one with --disk NAME; a version holds one disk",
        )
    file = disks[0].file
    member = members.get(file) or members.get(unquote(file))
    if member is None:
        raise _refused(window, f"its OVF names {shown(file)}, which is not in it", AGAIN)
    return member


def _system(root: Element) -> str:
    """The operating system: VMware's and VirtualBox's own words, else the description."""
    for section in root.iter():
        if _local(section.tag) != "OperatingSystemSection":
            continue
        words = [_attributes(section).get("osType", "")]
        for item in section:
            if _local(item.tag) in ("OSType", "Description"):
                words.append(item.text or "")
        return " ".join(word.strip() for word in words if word.strip())[:200]
    return ""


# --- the manifest -----------------------------------------------------------------------


def _digests(
    window: Window, members: dict[str, Member], manifest: Member, needed: tuple[Member, ...]
) -> tuple[Digest, ...]:
    """Read `SHA256(name)= hex` lines; they must cover what is needed and name nothing else."""
    found: dict[str, Digest] = {}
    for line in _text(window, manifest).splitlines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        algorithm = match[1].lower().replace("-", "") if match else ""
        if match is None or len(match[3]) != _ALGORITHMS[algorithm]:
            raise _refused(window, f"its manifest has the line {shown(line)}")
        name = match[2].removeprefix("./")
        if name not in members or name in found:
            why = "which is not in it" if name not in members else "twice"
            raise _refused(window, f"its manifest names {shown(name)}, {why}", AGAIN)
        found[name] = Digest(members[name], algorithm, match[3].lower())
    for member in needed:
        if member.name not in found:
            raise _refused(window, f"its manifest does not name {shown(member.name)}")
    return tuple(found[member.name] for member in needed)
