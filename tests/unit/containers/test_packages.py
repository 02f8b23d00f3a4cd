"""Packages and files of an image's tar file: dpkg, rpm, and what counts as a change."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.containers import packages
from poclab.containers.packages import Tree, dpkg, read_tree
from poclab.core.errors import PoclabError
from tests.hostile import rpmdbs
from tests.hostile.rpmdbs import database, header

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


@pytest.mark.parametrize("name", rpmdbs.REFUSED)
def test_a_hostile_rpm_database_leaves_packages_unknown(name: str, tmp_path: Path) -> None:
    rpmdbs.REFUSED[name].make(tmp_path / "db")
    data = (tmp_path / "db").read_bytes()
    found = tree({"usr/share/rpm/rpmdb.sqlite": data, "etc/hostname": b"x"})
    assert not found.packages
    assert found.note.startswith("its rpm database cannot be read: ")
    assert rpmdbs.REFUSED[name].why in found.note
    assert set(found.files) == {"usr/share/rpm/rpmdb.sqlite", "etc/hostname"}


def test_a_log_beside_an_rpm_database_is_never_mixed_in(tmp_path: Path) -> None:
    closed, log = rpmdbs.with_log(tmp_path)
    rpm = "usr/lib/sysimage/rpm/rpmdb.sqlite"
    for order in ((rpm, f"{rpm}-wal"), (f"{rpm}-wal", rpm)):
        files = {rpm: closed, f"{rpm}-wal": log, f"{rpm}-shm": b"x" * 32768}
        found = tree({name: files[name] for name in (*order, f"{rpm}-shm")})
        assert not found.packages
        assert "it was not closed" in found.note
    # rpm leaves an empty one.
    found = tree({rpm: closed, f"{rpm}-wal": b"", f"{rpm}-shm": bytes(32768)})
    assert (found.packages, found.note) == ({"bash": "5-3"}, "")


def test_an_rpm_database_too_large_to_be_copied_leaves_packages_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "_RPM_MOST", 10)
    assert "it has more than" in tree({"usr/share/rpm/rpmdb.sqlite": b"x" * 11}).note


@pytest.mark.parametrize(("limit", "value"), [("_DPKG_ALL", 100), ("_DPKG_PACKAGES", 1)])
def test_lists_of_dpkgs_that_are_too_long_together(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    piece = "var/lib/dpkg/status.d/{}"
    files = {piece.format(n): f"Package: p{n}\nVersion: 1\n".encode() for n in range(5)}
    assert len(tree(files).packages) == 5
    monkeypatch.setattr(packages, limit, value)
    found = tree(files)
    assert (dict(found.packages), len(found.files)) == ({}, 5)
    assert found.note == "its lists of dpkg's packages are too long"


def test_blanks_in_a_status_file_cost_no_time() -> None:
    started = time.monotonic()
    assert dpkg(f"Package: a{' ' * 2_000_000}b\n") == {}
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("cut", [10_240 - 700, 10_240 - 600])
def test_a_tar_file_that_is_cut_short(cut: int) -> None:
    with pytest.raises(PoclabError, match="files cannot be read"):
        tree({"a": b"x" * 500}, cut=cut)
