"""rpm databases of container images made to hang, exhaust or mislead whoever lists packages.

`REFUSED` are makers of SQLite files, each with a part of what poclab says of it.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

TABLE = "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)"
_NAME, _STRING = 1000, 6


def header(**values: str | int) -> bytes:
    """A header as rpm keeps it (rpm, docs/manual/format_header.md), other tags between."""
    tags = {"name": 1000, "version": 1001, "release": 1002, "epoch": 1003, "arch": 1022}
    entries, data = [(63, 7, 0, 16), (1004, 9, 16, 1)], bytearray(b"\0" * 16 + b"summary\0")
    for key, value in values.items():
        data += bytes(-len(data) % 4)
        entries.append((tags[key], 6 if isinstance(value, str) else 4, len(data), 1))
        data += value.encode() + b"\0" if isinstance(value, str) else struct.pack(">I", value)
    index = b"".join(struct.pack(">IIII", *entry) for entry in entries)
    return struct.pack(">II", len(entries), len(data)) + index + bytes(data)


def database(path: Path, *blobs: object, schema: tuple[str, ...] = (TABLE,)) -> None:
    """A database with these values for headers."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for sql in schema:
            connection.execute(sql)
        for blob in blobs:
            connection.execute("INSERT INTO Packages (blob) VALUES (?)", (blob,))


GOOD = header(name="bash", version="5", release="3")


def entries(count: int) -> bytes:
    """A good header but for its many entries, all but two of which are a name."""
    tags = [_NAME] * (count - 2) + [1001, 1002]
    index = b"".join(struct.pack(">IIII", tag, _STRING, 0, 1) for tag in tags)
    return struct.pack(">II", count, 2) + index + b"a\0"


def endless_text() -> bytes:
    """A header whose names have no end, so that looking for it takes the whole blob each time."""
    entry = struct.pack(">IIII", _NAME, _STRING, 0, 1)
    return struct.pack(">II", 1000, 2**22) + entry * 1000 + b"a" * 2**22


def slow(path: Path, count: int = 40) -> None:
    """Headers that take long to read, each within its bounds."""
    database(path, *[entries(65_000)] * count)


def with_log(directory: Path) -> tuple[bytes, bytes]:
    """A closed database with one package, and a log that would add another one to it."""
    path, copy = directory / "whole", directory / "open"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(TABLE)
        connection.execute("INSERT INTO Packages (blob) VALUES (?)", (GOOD,))
    closed = path.read_bytes()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        evil = header(name="evil", version="6", release="6")
        connection.execute("INSERT INTO Packages (blob) VALUES (?)", (evil,))
        connection.commit()
        shutil.copy(f"{path}-wal", copy)
    log = copy.read_bytes()
    assert len(log) > 1000
    return closed, log


@dataclass(frozen=True)
class Refused:
    """A database that is not read.

    Attributes:
        make: writes it to a path.
        why: a part of what poclab says.
    """

    make: Callable[[Path], None]
    why: str


_ANY_TYPE = "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob)"
_ENDLESS = (
    "CREATE VIEW Packages AS WITH RECURSIVE n(blob) AS "
    "(SELECT 1 UNION ALL SELECT blob + 1 FROM n) SELECT blob FROM n"
)
_COMPUTED = "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, x, blob AS (hex(zeroblob(x))){})"
_TRIGGER = "CREATE TRIGGER t AFTER INSERT ON Packages BEGIN SELECT hex(zeroblob(1)); END"


def _of(*blobs: object, schema: tuple[str, ...] = (_ANY_TYPE,)) -> Callable[[Path], None]:
    return partial(_made, blobs, schema)


def _made(blobs: tuple[object, ...], schema: tuple[str, ...], path: Path) -> None:
    database(path, *blobs, schema=schema)


def _lying_schema(path: Path) -> None:
    """A view that is called a table in the list of all things."""
    database(path, schema=(_ENDLESS,))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET type = 'table'")


def _damaged_pages(path: Path) -> None:
    database(path, *[GOOD] * 1000)
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 8] = b"\xff" * 8
    path.write_bytes(data)


def _just(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


_BAD_SCHEMA = "it has views, triggers or virtual tables"
REFUSED = {
    "endless view": Refused(_of(schema=(_ENDLESS,)), _BAD_SCHEMA),
    "view called a table": Refused(_lying_schema, "malformed"),
    "another view": Refused(_of(GOOD, schema=(TABLE, "CREATE VIEW v AS SELECT 1")), _BAD_SCHEMA),
    "trigger": Refused(_of(GOOD, schema=(TABLE, _TRIGGER)), _BAD_SCHEMA),
    "virtual table": Refused(
        _of(schema=("CREATE VIRTUAL TABLE Packages USING fts3(blob)",)), _BAD_SCHEMA
    ),
    "generated": Refused(_of(schema=(_COMPUTED.format(""),)), "generated columns"),
    "generated, stored": Refused(_of(schema=(_COMPUTED.format(" STORED"),)), "generated columns"),
    "no packages": Refused(_of(schema=("CREATE TABLE other (blob)",)), "no table of packages"),
    "no blobs": Refused(_of(schema=("CREATE TABLE Packages (hnum)",)), "no table of packages"),
    "a number": Refused(_of(2**40), "not binary"),
    "a small number": Refused(_of(GOOD, 7), "not binary"),
    "a fraction": Refused(_of(1.5), "not binary"),
    "a text": Refused(_of("bash"), "not binary"),
    "nothing": Refused(_of(None), "not binary"),
    "many entries": Refused(_of(entries(65_537)), "more than 65,536 entries"),
    "counts beyond the end": Refused(_of(b"\xff" * 100), "more than 65,536 entries"),
    "cut short": Refused(_of(entries(100)[:200]), "cut short"),
    "no name": Refused(_of(header(version="1", release="1")), "a header in it is damaged"),
    "endless text": Refused(_of(endless_text()), "a text without an end"),
    "no database": Refused(_just(b"rpm" * 999), "not a database"),
    "no pages": Refused(_just(b"SQLite format 3\0" + bytes(100)), "not a database"),
    "damaged pages": Refused(_damaged_pages, "malformed"),
}
