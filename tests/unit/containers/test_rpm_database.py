"""rpm databases: packages of good ones, and nothing but a refusal of hostile ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.containers import rpm_database
from tests.hostile import rpmdbs
from tests.hostile.rpmdbs import database, header

words = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,8}", fullmatch=True)


@given(words, words, words, words, st.none() | st.integers(0, 2**32 - 1))
def test_headers(name: str, version: str, release: str, arch: str, epoch: int | None) -> None:
    found = header(name=name, version=version, release=release, arch=arch)
    assert rpm_database.header(found) == (name, f"{version}-{release}.{arch}")
    if epoch is not None:
        found = header(name=name, epoch=epoch, version=version, release=release)
        assert rpm_database.header(found) == (name, f"{epoch}:{version}-{release}")


@given(st.binary(max_size=100))
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        rpm_database.header(data)


@given(st.integers(0, 200), st.binary(max_size=3))
def test_a_header_that_is_cut_short_is_refused_or_whole(cut: int, tail: bytes) -> None:
    whole = header(name="a", version="1", release="2")
    try:
        assert rpm_database.header(whole[:cut] + tail) is not None
    except ValueError:
        assert cut < len(whole)


def test_a_database(tmp_path: Path) -> None:
    kernels = [header(name="kernel", version=v, release="1", arch="x86_64") for v in ("7", "6")]
    path = tmp_path / "a?b#c%20.sqlite"  # of no meaning in a path
    # Indexes of both kinds, as rpm has them.
    schema = (rpmdbs.TABLE, "CREATE TABLE Name (key TEXT UNIQUE)", "CREATE INDEX i ON Name (key)")
    bash = header(name="bash", version="5", release="3")
    database(path, *kernels, bash, schema=schema)
    found = {"kernel": "6-1.x86_64 7-1.x86_64", "bash": "5-3"}
    assert rpm_database.packages(path) == found


@pytest.mark.parametrize("name", rpmdbs.REFUSED)
def test_hostile_databases_are_refused_at_once(name: str, tmp_path: Path) -> None:
    item = rpmdbs.REFUSED[name]
    item.make(tmp_path / "rpmdb.sqlite")
    started = time.monotonic()
    with pytest.raises(ValueError, match=item.why):
        rpm_database.packages(tmp_path / "rpmdb.sqlite")
    assert time.monotonic() - started < 5


def test_the_deadline_holds_between_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rpmdbs.slow(tmp_path / "rpmdb.sqlite")
    monkeypatch.setattr(rpm_database, "SECONDS", 0.2)
    with pytest.raises(ValueError, match="takes more than"):
        rpm_database.packages(tmp_path / "rpmdb.sqlite")


def test_the_number_of_packages_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database(tmp_path / "rpmdb.sqlite", *[rpmdbs.GOOD] * 11)
    monkeypatch.setattr(rpm_database, "_PACKAGES", 10)
    with pytest.raises(ValueError, match="more than 10 packages"):
        rpm_database.packages(tmp_path / "rpmdb.sqlite")
