"""The packages and files of a container image, read from its tar file. Nothing of it is run.

dpkg keeps a text, `var/lib/dpkg/status` (deb822, dpkg-query(1)); images without a package manager
keep a piece of it for each package in `status.d`. rpm keeps SQLite (`rpmdb.sqlite`, rpm 4.16 and
later) with a header for each package: the number of entries and of bytes of data, then entries of
tag, type, offset and count, all of 32 bits and big-endian, then the data (rpm,
docs/manual/format_header.md).
"""

from __future__ import annotations

import hashlib
import re
import struct
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from poclab.errors import PoclabError
from poclab.files import below
from poclab.tarwalk import Member, TarError, TarReader
from poclab.units import GIB, MIB

if TYPE_CHECKING:
    import sqlite3

_DPKG = re.compile(r"var/lib/dpkg/(status|status\.d/[^/]+)")
_DPKG_MOST = 64 * MIB  # bytes of a status file that are read
# The first on Fedora and on bootc images, where /var is not part of the image.
_RPM_IN = r"(?:usr/lib/sysimage/rpm|usr/share/rpm|var/lib/rpm)/"
_RPM = re.compile(_RPM_IN + r"(rpmdb\.sqlite(?:-wal|-shm)?)")
# A database has some 100 MiB, and a header in it 1 MiB; reading one takes a second or two.
_RPM_MOST = GIB
_RPM_HEADER_MOST = 64 * MIB
_RPM_SECONDS = 60.0
_OLD_RPM = re.compile(_RPM_IN + r"(?:Packages|Packages\.db)")
_OLD_NOTE = "its rpm database is of a form before rpm 4.16"
_OSTREE = "sysroot/ostree/"  # of a bootc image: the same files as in /usr once more
_ENTRY = struct.Struct(">IIII")
# rpmtag.h: RPMTAG_NAME and so on; types INT32 and STRING.
_NAME, _VERSION, _RELEASE, _EPOCH, _ARCH = 1000, 1001, 1002, 1003, 1022
_INT32, _STRING = 4, 6


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
    note = ""
    with tempfile.TemporaryDirectory(prefix="poclab-rpm-") as scratch:
        reader = TarReader(stream)
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
                    found |= dpkg(text.decode(errors="replace"))
                    files[name] = _file(member, _digest(reader, text))
                elif match := _RPM.fullmatch(name):
                    _copy(reader, member, below(Path(scratch), match[1]))
                    files[name] = _file(member, "database")
                else:
                    note = _OLD_NOTE if _OLD_RPM.fullmatch(name) else note
                    files[name] = _file(member, _digest(reader))
        except TarError as error:
            raise PoclabError("the image's files cannot be read", why=str(error)) from error
        found |= rpm(Path(scratch))
    return Tree(files, found, "" if found else note or "it has no package database")


def _copy(reader: TarReader, member: Member, target: Path) -> None:
    if member.size > _RPM_MOST:
        raise PoclabError("the image's rpm database cannot be read", why="it is too large")
    with target.open("wb") as copy:
        while piece := reader.read(MIB):
            copy.write(piece)


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


# --- rpm ------------------------------------------------------------------------------------


def rpm(directory: Path) -> dict[str, str]:
    """The packages of an rpm database: version by name, several of one separated by blanks.

    Args:
        directory: where `rpmdb.sqlite` is, if it is.

    Raises:
        PoclabError: it is damaged.
    """
    database = directory / "rpmdb.sqlite"
    if not database.exists():
        return {}
    import sqlite3

    found: dict[str, list[str]] = {}
    try:
        with closing(sqlite3.connect(database)) as connection:
            _restrict(connection)
            for (blob,) in connection.execute("SELECT blob FROM Packages"):
                name, version = rpm_header(bytes(blob))
                found.setdefault(name, []).append(version)
    except (sqlite3.Error, ValueError) as error:
        raise PoclabError("the image's rpm database cannot be read", why=str(error)) from error
    return {name: " ".join(sorted(versions)) for name, versions in found.items()}


def _restrict(connection: sqlite3.Connection) -> None:
    """Have SQLite read a table and nothing else, in bounded time and memory.

    A database is a program too: a view or a virtual table computes what is selected from it
    (sqlite.org/security.html).

    Raises:
        ValueError: `Packages` is not an ordinary table.
    """
    import sqlite3

    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _RPM_HEADER_MOST)
    deadline = time.monotonic() + _RPM_SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    connection.execute("PRAGMA trusted_schema = OFF")
    row = connection.execute(
        "SELECT type, sql FROM sqlite_master WHERE name = 'Packages' COLLATE NOCASE"
    ).fetchone()
    kind, sql = row or ("", "")
    if kind != "table" or not re.match(r"\s*CREATE\s+TABLE\b", str(sql), re.IGNORECASE):
        raise ValueError("Packages is not a table")


def rpm_header(blob: bytes) -> tuple[str, str]:
    """A package's name and its version, `[EPOCH:]VERSION-RELEASE.ARCH`.

    Raises:
        ValueError: it is no header.
    """
    try:
        count, _ = struct.unpack_from(">II", blob)
        begin = 8 + count * _ENTRY.size
        if begin > len(blob):
            raise ValueError("a header is cut short")
        values: dict[int, str] = {}
        for number in range(count):
            tag, kind, offset, _ = _ENTRY.unpack_from(blob, 8 + number * _ENTRY.size)
            if kind == _STRING and tag in (_NAME, _VERSION, _RELEASE, _ARCH):
                end = blob.index(b"\0", begin + offset)
                values[tag] = blob[begin + offset : end].decode(errors="replace")
            elif kind == _INT32 and tag == _EPOCH:
                values[tag] = f"{struct.unpack_from('>I', blob, begin + offset)[0]}:"
        arch = f".{values[_ARCH]}" if _ARCH in values else ""
        version = f"{values.get(_EPOCH, '')}{values[_VERSION]}-{values[_RELEASE]}{arch}"
        return values[_NAME], version
    except (struct.error, KeyError) as error:
        raise ValueError(f"a header is damaged: {error!r}") from error
