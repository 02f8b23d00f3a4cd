"""Packages and files of an image's tar file: dpkg, rpm, and what counts as a change."""

from __future__ import annotations

import io
import sqlite3
import struct
import tarfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.errors import PoclabError
from poclab.packages import Tree, dpkg, read_tree, rpm, rpm_header

words = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,8}", fullmatch=True)


def stanza(name: str, version: str, status: str = "install ok installed") -> str:
    return (
        f"Package: {name}\nStatus: {status}\nArchitecture: amd64\nVersion: {version}\n"
        "Description: short\n Version: 0 in a continuation line\n .\n more\n"
    )


@given(st.dictionaries(words, words, max_size=6), st.dictionaries(words, words, max_size=3))
def test_dpkg_lists_what_is_installed(there: dict[str, str], gone: dict[str, str]) -> None:
    parts = [stanza(*item) for item in there.items()]
    parts += [stanza(*item, "deinstall ok config-files") for item in gone.items()]
    assert dpkg("\n".join(parts)) == there


def test_dpkg_of_two_architectures_and_of_a_piece_without_a_status() -> None:
    other = stanza("libc6", "1").replace("amd64", "i386")
    assert dpkg(f"{stanza('libc6', '2')}\n{other}") == {"libc6": "2", "libc6:i386": "1"}
    assert dpkg("Package: base\nVersion: 13\n") == {"base": "13"}


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


@given(words, words, words, words, st.none() | st.integers(0, 2**32 - 1))
def test_rpm_headers(name: str, version: str, release: str, arch: str, epoch: int | None) -> None:
    found = header(name=name, version=version, release=release, arch=arch)
    assert rpm_header(found) == (name, f"{version}-{release}.{arch}")
    if epoch is not None:
        found = header(name=name, epoch=epoch, version=version, release=release)
        assert rpm_header(found) == (name, f"{epoch}:{version}-{release}")


@given(st.binary(max_size=100))
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        rpm_header(data)


@given(st.integers(0, 200), st.binary(max_size=3))
def test_a_header_that_is_cut_short_is_refused_or_whole(cut: int, tail: bytes) -> None:
    whole = header(name="a", version="1", release="2")
    try:
        assert rpm_header(whole[:cut] + tail) is not None
    except ValueError:
        assert cut < len(whole)


def database(path: Path, *headers: bytes) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
        for found in headers:
            connection.execute("INSERT INTO Packages (blob) VALUES (?)", (found,))


def test_an_rpm_database(tmp_path: Path) -> None:
    kernels = [header(name="kernel", version=v, release="1", arch="x86_64") for v in ("7", "6")]
    database(tmp_path / "rpmdb.sqlite", *kernels, header(name="bash", version="5", release="3"))
    assert rpm(tmp_path) == {"kernel": "6-1.x86_64 7-1.x86_64", "bash": "5-3"}
    (tmp_path / "rpmdb.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(PoclabError, match="rpm database cannot be read"):
        rpm(tmp_path)


def tree(files: Mapping[str, bytes], *more: tarfile.TarInfo, cut: int = 0) -> Tree:
    """What is read of a tar file that comes through a pipe."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in more:
            archive.addfile(member)
    data = target.getvalue()
    return read_tree(io.BytesIO(data[: len(data) - cut]))


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_a_tree(tmp_path: Path) -> None:
    database(tmp_path / "db", header(name="bash", version="5", release="3"))
    found = tree(
        {
            "./usr/bin/a": b"hello",
            "var/lib/dpkg/status": stanza("libc6", "2.36").encode(),
            "var/lib/dpkg/status.d/base": b"Package: base\nVersion: 13\n",
            "usr/lib/sysimage/rpm/rpmdb.sqlite": (tmp_path / "db").read_bytes(),
            "sysroot/ostree/repo/objects/00/1.file": b"hello",
        },
        link("usr/bin/b", "usr/bin/a", tarfile.LNKTYPE),
        link("usr/bin/c", "a", tarfile.SYMTYPE),
        link("usr/lib", "", tarfile.DIRTYPE),
    )
    assert found.packages == {"libc6": "2.36", "base": "13", "bash": "5-3"}
    assert found.note == ""
    assert {"usr/bin/a", "usr/bin/b", "usr/bin/c"} < found.files.keys()
    assert not {"usr/lib", "sysroot/ostree/repo/objects/00/1.file"} & found.files.keys()
    assert found.files["usr/bin/a"] == found.files["usr/bin/b"]
    assert found.files["usr/bin/a"].size == 5
    assert found.files["usr/bin/c"].content == "a"


def test_why_packages_are_not_known() -> None:
    assert tree({"etc/hostname": b"x"}).note == "it has no package database"
    assert "before rpm 4.16" in tree({"var/lib/rpm/Packages": b"x", "a": b""}).note


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE VIEW Packages AS WITH RECURSIVE n(blob) AS "
        "(SELECT 1 UNION ALL SELECT blob + 1 FROM n) SELECT blob FROM n",
        "CREATE VIRTUAL TABLE Packages USING fts3(blob)",
        "CREATE TABLE other (blob)",
    ],
)
def test_an_rpm_database_that_is_a_program_is_not_run(schema: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "rpmdb.sqlite")) as connection, connection:
        connection.execute(schema)
    with pytest.raises(PoclabError, match="Packages is not a table"):
        rpm(tmp_path)


def test_a_computed_column_is_bounded(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "rpmdb.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE Packages (x, blob AS (hex(zeroblob(x))))")
        connection.execute("INSERT INTO Packages (x) VALUES (40000000)")
    with pytest.raises(PoclabError, match="too big"):
        rpm(tmp_path)


def test_blanks_in_a_status_file_cost_no_time() -> None:
    started = time.monotonic()
    assert dpkg(f"Package: a{' ' * 2_000_000}b\n") == {}
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("cut", [10_240 - 700, 10_240 - 600])
def test_a_tar_file_that_is_cut_short(cut: int) -> None:
    with pytest.raises(PoclabError, match="files cannot be read"):
        tree({"a": b"x" * 500}, cut=cut)
