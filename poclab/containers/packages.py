"""The packages and files of a container image, read from its tar file. Nothing of it is run.

dpkg keeps a text, `var/lib/dpkg/status` (deb822, dpkg-query(1)); images without a package manager
keep a piece of it for each package in `status.d`. rpm keeps a database (`rpmdb`).
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from poclab.containers import rpm_database
from poclab.core.errors import PoclabError
from poclab.core.plaintext import plain
from poclab.core.tar_reader import Member, TarError, TarReader
from poclab.core.units import GIB, MIB, format_size

_DPKG = re.compile(r"var/lib/dpkg/(status|status\.d/[^/]+)")
_DPKG_MOST = 64 * MIB  # bytes of a status file that are read
_DPKG_ALL = 128 * MIB  # bytes of all of them; a large system has some 5 MiB
_DPKG_PACKAGES = 100_000
# The first on Fedora and on bootc images, where /var is not part of the image.
_RPM_IN = r"(?:usr/lib/sysimage/rpm|usr/share/rpm|var/lib/rpm)/"
_RPM = re.compile(_RPM_IN + r"rpmdb\.sqlite(?P<beside>-wal|-shm)?")
_RPM_MOST = GIB  # bytes of a database; the largest has some 100 MiB
_OLD_RPM = re.compile(_RPM_IN + r"(?:Packages|Packages\.db)")
_OLD_NOTE = "its rpm database is of a form before rpm 4.16"
_OSTREE = "sysroot/ostree/"  # of a bootc image: the same files as in /usr once more


@dataclass(frozen=True)
class File:
    """What is compared of a file that is no directory.

    Attributes:
        kind: what it is, as in the tar file.
        mode: permission bits.
        owner: user and group ID.
        size: bytes.
        content: the content's digest, a link's target, or a device's numbers.
    """

    kind: str
    mode: int
    owner: tuple[int, int]
    size: int
    content: str


@dataclass(frozen=True)
class Tree:
    """What is in an image.

    Attributes:
        files: what is no directory, by path.
        packages: version by package; several versions of one are separated by blanks.
        note: why packages are not known, or an empty string.
    """

    files: Mapping[str, File] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def read_tree(stream: IO[bytes]) -> Tree:
    """Read an image's flattened file system.

    Args:
        stream: a tar file, read once from front to end.

    Raises:
        PoclabError: it is no whole tar file.
    """
    files: dict[str, File] = {}
    found: dict[str, str] = {}
    note, left = "", _DPKG_ALL
    with tempfile.TemporaryDirectory(prefix="poclab-rpm-") as scratch:
        reader, rpm = TarReader(stream), _Rpm(Path(scratch))
        try:
            for member in reader:
                name = _plain(member.name)
                if name.startswith(_OSTREE) or member.kind == "directory":
                    continue
                if member.kind == "hardlink":
                    files[name] = files.get(_plain(member.target), _file(member, ""))
                elif member.kind != "file":
                    files[name] = _file(member, member.target or _numbers(member))
                elif _DPKG.fullmatch(name):
                    text = reader.read(_DPKG_MOST)
                    left -= len(text)
                    if left >= 0 and len(found) <= _DPKG_PACKAGES:
                        found |= dpkg(text.decode(errors="replace"))
                    files[name] = _file(member, _digest(reader, text))
                elif match := _RPM.fullmatch(name):
                    rpm.take(reader, member, match["beside"] or "")
                    files[name] = _file(member, "database")
                else:
                    note = _OLD_NOTE if _OLD_RPM.fullmatch(name) else note
                    files[name] = _file(member, _digest(reader))
        except TarError as error:
            raise PoclabError("the image's files cannot be read", why=str(error)) from error
        found |= rpm.packages()
    if left < 0 or len(found) > _DPKG_PACKAGES:
        return Tree(files, {}, "its lists of dpkg's packages are too long")
    if rpm.fault:
        return Tree(files, {}, f"its rpm database cannot be read: {plain(rpm.fault)}")
    return Tree(files, found, "" if found else note or "it has no package database")


class _Rpm:
    """The rpm database of an image, file by file.

    Attributes:
        fault: why it cannot be read, or an empty string.
    """

    def __init__(self, directory: Path) -> None:
        self._copy = directory / "rpmdb.sqlite"
        self.fault = ""

    def take(self, reader: TarReader, member: Member, beside: str) -> None:
        """Take the current member: the database, or a file that SQLite keeps beside it.

        Args:
            reader: the archive.
            member: its current member.
            beside: what comes after the database's name.

        Raises:
            TarError: see `TarReader`.
        """
        if beside:
            if beside == "-wal" and member.size:
                self.fault = "it was not closed: part of it may be in its log (rpmdb.sqlite-wal)"
        elif member.size > _RPM_MOST:
            self.fault = f"it has more than {format_size(_RPM_MOST)}"
        else:
            try:
                with self._copy.open("wb") as copy:
                    while piece := reader.read(MIB):
                        copy.write(piece)
            except OSError as error:
                self.fault = f"it cannot be copied: {error.strerror}"

    def packages(self) -> dict[str, str]:
        """Give the packages, none where it cannot be read."""
        if not self.fault and self._copy.exists():
            try:
                return rpm_database.packages(self._copy)
            except ValueError as error:
                self.fault = str(error)
        return {}


def _plain(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _file(member: Member, content: str) -> File:
    return File(member.kind, member.mode, (member.uid, member.gid), member.size, content)


def _numbers(member: Member) -> str:
    return "{}:{}".format(*member.device) if member.kind in ("char", "block") else ""


def _digest(reader: TarReader, begin: bytes = b"") -> str:
    state = hashlib.sha256(begin)
    while piece := reader.read(MIB):
        state.update(piece)
    return state.hexdigest()


# --- dpkg -----------------------------------------------------------------------------------


def dpkg(text: str) -> dict[str, str]:
    """The packages of a status file that are installed: version by name.

    A package of another architecture beside the same one is `NAME:ARCHITECTURE`, as dpkg has it.
    """
    found: dict[str, str] = {}
    for stanza in re.split(r"\n[ \t]*\n", text):
        # Blanks around a value are taken off later: a pattern for them would try each of many.
        pairs = re.findall(r"^([A-Za-z-]+):(.*)$", stanza, re.MULTILINE)
        fields = {key: value.strip(" \t") for key, value in pairs}
        name, version = fields.get("Package"), fields.get("Version")
        state = fields.get("Status", "install ok installed").split()
        if name and version and state[-1:] == ["installed"]:
            if name in found:
                name = f"{name}:{fields.get('Architecture', '')}"
            found[name] = version
    return found
