"""Digests of files: what they are computed with, holes, parts."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from poclab.core.errors import PoclabError
from poclab.core.units import MIB
from poclab.disks.digest import Digester, Wanted, computing, file_digest


def test_digests_are_what_others_compute() -> None:
    """The values are those of BLAKE3's test vectors and of FIPS 180-4's examples."""
    found = Digester()
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert str(found) == f"blake3:{empty}"
    found.update(b"a")
    found.update(memoryview(b"bc"))
    abc = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert str(found) == f"blake3:{abc}"
    old = Digester("sha256:" + "0" * 64)
    old.update(b"abc")
    assert str(old).startswith("sha256:ba7816bf8f01cfea414140de5dae2223")


def test_a_file_is_digested_like_the_digest_that_is_known(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a")
    data = path.read_bytes()
    sha256 = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert file_digest(path) == f"blake3:{blake3(data).hexdigest()}"
    assert file_digest(path, sha256) == file_digest(path, "sha256") == sha256
    with pytest.raises(PoclabError, match="cannot be read"):
        file_digest(tmp_path / "none")


def sparse(path: Path) -> Path:
    """Hole, data, hole, data, hole; the last hole ends within a block."""
    with path.open("wb") as file:
        for at in (3 * MIB, 9 * MIB + 4096):
            file.seek(at)
            file.write(os.urandom(MIB + 5))
        file.truncate(13 * MIB + 77)
    return path


def test_digests_of_a_file_with_holes_and_of_parts(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a")
    data = path.read_bytes()
    wanted = (
        Wanted("sha256"),
        Wanted("blake3"),
        Wanted("blake3", 2 * MIB - 3, 2 * MIB),
        Wanted("sha1", 3 * MIB - 5, 2 * MIB),
        Wanted("sha512", 9 * MIB, 1),
        Wanted("sha256", 13 * MIB + 70),
        Wanted("sha256", 5, 0),
    )
    with computing(path, *wanted) as running:
        found = running.results()
    for one, result in zip(wanted, found, strict=True):
        end = None if one.size is None else one.offset + one.size
        part = data[one.offset : end]
        known = blake3(part) if one.algorithm == "blake3" else hashlib.new(one.algorithm, part)
        assert result == known.hexdigest()


def test_an_early_end_ends_the_thread(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    before = threading.active_count()

    def interrupted() -> None:
        with computing(path, Wanted("sha256")):
            assert threading.active_count() == before + 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert threading.active_count() == before


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with (
        computing(tmp_path / "none", Wanted("sha256")) as running,
        pytest.raises(PoclabError, match="cannot be read"),
    ):
        running.results()
