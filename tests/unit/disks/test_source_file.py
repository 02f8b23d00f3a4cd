"""The file that an import reads: whose it is, whether it stays as it was, and a copy of it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from poclab.core.errors import PoclabError
from poclab.core.units import GIB, KIB, MIB
from poclab.disks import source_file
from tests.support.disks import raw


@pytest.mark.parametrize(
    ("owner", "mode", "caller", "foreign"),
    [
        ("me", 0o644, "", False),
        ("me", 0o400, "", False),
        ("me", 0o664, "", True),
        ("me", 0o602, "", True),
        ("root", 0o644, "", False),
        ("other", 0o600, "", True),
        ("other", 0o600, "caller", False),
        ("other", 0o620, "caller", True),
        ("other", 0o600, "nonsense", True),
    ],
)
def test_whose_file_it_is(
    owner: str, mode: int, caller: str, foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root with sudo's variable, since only root believes that."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", {"caller": "4711", "": ""}.get(caller, caller))
    uid = {"me": 0, "root": 0, "other": 4711}[owner]
    found = SimpleNamespace(st_uid=uid, st_mode=0o100000 | mode)
    assert source_file._is_foreign(found) is foreign  # type: ignore[arg-type]


def test_an_ordinary_user_s_word_makes_nobody_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("SUDO_UID", "4711")
    assert source_file._trusted() == {0, 1000}


def test_a_change_shows_though_its_times_are_set_back(tmp_path: Path) -> None:
    path = raw(tmp_path / "disk")
    path.chmod(0o600)
    before = path.stat()
    with source_file.opening(path, "disk") as source:
        source.check_unchanged()
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        with pytest.raises(PoclabError, match="changed while it was read"):
            source.check_unchanged()


def test_a_file_that_was_just_written_is_left_to_settle(tmp_path: Path) -> None:
    """Twenty changes right after it was opened: each has another time."""
    path = tmp_path / "disk"
    for number in range(20):
        path.write_bytes(b"x")
        path.chmod(0o600)
        with source_file.opening(path, "disk") as source, path.open("r+b") as file:
            file.write(bytes([number]))
            file.flush()
            with pytest.raises(PoclabError, match="changed"):
                source.check_unchanged()


def test_a_file_that_is_written_all_the_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    path.chmod(0o600)
    monkeypatch.setattr(source_file, "_PATIENCE", 0.2)
    monkeypatch.setattr(time, "sleep", lambda _: path.write_bytes(b"y"))
    with (
        pytest.raises(PoclabError, match="changed while it was read"),
        source_file.opening(path, "disk"),
    ):
        pass


def copied(path: Path, target: Path) -> None:
    with source_file.opening(path, "disk") as source:
        source_file.copied(source, target, place=target.parent)


def test_a_copy_has_the_data_and_the_holes(tmp_path: Path) -> None:
    path = raw(tmp_path / "disk", GIB + 5)
    target = tmp_path / "copy"
    copied(path, target)
    found = target.stat()
    assert found.st_size == GIB + 5
    assert found.st_blocks * 512 < 2 * MIB
    assert found.st_mode & 0o777 == 0o600
    with path.open("rb") as file, target.open("rb") as other:
        assert file.read(8 * MIB) == other.read(8 * MIB)


def test_a_copy_leaves_the_reserve_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=100 * GIB, free=GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(source_file, "_reflinked", lambda *_: False)
    with pytest.raises(PoclabError, match="no room"):
        copied(raw(tmp_path / "disk"), tmp_path / "copy")


def test_a_file_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw(tmp_path / "disk")
    path.chmod(0o666)
    os.utime(path)

    def reflinked(*_: int) -> bool:
        os.truncate(path, 64 * KIB)
        return True

    monkeypatch.setattr(source_file, "_reflinked", reflinked)
    with pytest.raises(PoclabError, match="changed while it was read"):
        copied(path, tmp_path / "copy")
