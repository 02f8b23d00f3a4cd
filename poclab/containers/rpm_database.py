"""The packages in an rpm database of a container image, whose maker may be hostile.

rpm 4.16 and later keep SQLite (`rpmdb.sqlite`) with a header for each package: the number of
entries and of bytes of data, then entries of tag, type, offset and count, all of 32 bits and
big-endian, then the data (rpm, docs/manual/format_header.md).

A database is a program too: views, triggers, virtual tables and generated columns compute what is
read from it (sqlite.org/security.html). So one that has any of these is refused, and time, memory
and all numbers are bounded. A log beside it (`-wal`) is never read: rpm empties its own when it
closes the database (lib/backend/sqlite.c, sqlite_fini()).
"""

from __future__ import annotations

import re
import struct
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from poclab.core.units import KIB, MIB

if TYPE_CHECKING:
    import sqlite3

# Reading the largest takes some seconds; distributions have some 70,000 packages.
SECONDS = 60.0
_PACKAGES = 100_000
_TEXT = 4 * KIB  # bytes of a name or a version
_ALL_TEXT = 64 * MIB  # characters of all of them
# rpm takes headers of 256 MiB and 65,535 entries at most (lib/header.cc, HEADER_DATA_MAX,
# HEADER_TAGS_MAX); real ones have 1 MiB and some 100.
_HEADER, ENTRIES = 64 * MIB, 65_536
_MEMORY = 256 * MIB  # what SQLite may take
_SQL = 64 * KIB  # bytes of a statement that makes a table; rpm's have some 100
_PLAIN = re.compile(r"CREATE\s+(?:TABLE|(?:UNIQUE\s+)?INDEX)\b", re.IGNORECASE)
_STEPS = 1000  # of SQLite's virtual machine, between two looks at the clock
_ENTRY = struct.Struct(">IIII")
# rpmtag.h: RPMTAG_NAME and so on; types INT32 and STRING.
_NAME, _VERSION, _RELEASE, _EPOCH, _ARCH = 1000, 1001, 1002, 1003, 1022
_INT32, _STRING = 4, 6


@dataclass(frozen=True)
class _Deadline:
    """When reading has to be over."""

    end: float

    def passed(self) -> bool:
        return time.monotonic() > self.end

    def check(self) -> None:
        if self.passed():
            raise ValueError(f"reading it takes more than {SECONDS:.0f} seconds")


def packages(database: Path) -> dict[str, str]:
    """Read a database: version by name, several of one separated by blanks.

    Args:
        database: the file, which nobody else has open.

    Raises:
        ValueError: if it is damaged, is a program, or takes more than is sensible.
    """
    import sqlite3

    deadline = _Deadline(time.monotonic() + SECONDS)
    # sqlite.org/uri.html: `immutable` opens the file only, whatever lies beside it.
    uri = f"file:{quote(str(database.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            _restrict(connection, deadline)
            _check_schema(connection)
            return _packages(connection, deadline)
    except sqlite3.Error as error:
        deadline.check()  # SQLite says "interrupted"
        raise ValueError(str(error)) from error
    except MemoryError as error:
        raise ValueError("reading it takes too much memory") from error


def _restrict(connection: sqlite3.Connection, deadline: _Deadline) -> None:
    """Bound what SQLite takes, as its own advice for untrusted files says."""
    import sqlite3

    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _HEADER)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _SQL)
    connection.set_progress_handler(deadline.passed, _STEPS)
    connection.execute(f"PRAGMA hard_heap_limit = {_MEMORY}")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _check_schema(connection: sqlite3.Connection) -> None:
    """Check that nothing in a database computes what is read.

    Raises:
        ValueError: if something does.
    """
    for kind, sql in connection.execute("SELECT type, sql FROM sqlite_master"):
        # An index that SQLite makes by itself has no statement. What a statement says decides,
        # whatever kind it is listed as.
        if kind not in ("table", "index") or not (sql is None or _PLAIN.match(str(sql))):
            raise ValueError("it has views, triggers or virtual tables")
    # pragma.html: the seventh column is 0 for ordinary columns, 1 for hidden ones of virtual
    # tables, 2 and 3 for generated ones.
    columns = connection.execute("PRAGMA table_xinfo('Packages')").fetchall()
    if any(column[6] != 0 for column in columns):
        raise ValueError("it has generated columns")
    if not any(str(column[1]).lower() == "blob" for column in columns):
        raise ValueError("it has no table of packages")


def _packages(connection: sqlite3.Connection, deadline: _Deadline) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    size = 0
    rows = connection.execute('SELECT "blob" FROM Packages')
    for number, (blob,) in enumerate(rows, 1):
        deadline.check()
        if not isinstance(blob, bytes):
            raise ValueError("a header in it is not binary")
        name, version = header(blob)
        size += len(name) + len(version)
        if number > _PACKAGES or size > _ALL_TEXT:
            raise ValueError(f"it has more than {_PACKAGES:,} packages, or too long names")
        found.setdefault(name, []).append(version)
    return {name: " ".join(sorted(versions)) for name, versions in found.items()}


def header(blob: bytes) -> tuple[str, str]:
    """Read a package's name and its version, `[EPOCH:]VERSION-RELEASE.ARCH`.

    Raises:
        ValueError: if it is not a header.
    """
    try:
        count, _ = struct.unpack_from(">II", blob)
        begin = 8 + count * _ENTRY.size
        if count > ENTRIES:
            raise ValueError(f"a header in it has more than {ENTRIES:,} entries")
        if begin > len(blob):
            raise ValueError("a header in it is cut short")
        values: dict[int, str] = {}
        for number in range(count):
            tag, kind, offset, _ = _ENTRY.unpack_from(blob, 8 + number * _ENTRY.size)
            if kind == _STRING and tag in (_NAME, _VERSION, _RELEASE, _ARCH):
                values[tag] = _string(blob, begin + offset)
            elif kind == _INT32 and tag == _EPOCH:
                values[tag] = f"{struct.unpack_from('>I', blob, begin + offset)[0]}:"
        arch = f".{values[_ARCH]}" if _ARCH in values else ""
        version = f"{values.get(_EPOCH, '')}{values[_VERSION]}-{values[_RELEASE]}{arch}"
        return values[_NAME], version
    except (struct.error, KeyError) as error:
        raise ValueError("a header in it is damaged") from error


def _string(blob: bytes, begin: int) -> str:
    end = blob.find(b"\0", begin, begin + _TEXT)
    if end < 0:
        raise ValueError("a header in it has a text without an end")
    return blob[begin:end].decode(errors="replace")
