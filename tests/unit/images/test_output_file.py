"""A large file that appears under its name whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poclab.core import files
from poclab.core.errors import PoclabError, UsageError
from poclab.core.process import using
from poclab.images import output_file
from tests.support.fake_podman import FakePodman


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_made(tmp_path: Path) -> None:
    target = tmp_path / "out.iso"
    with output_file.beside(target) as work:
        assert work.stat().st_dev == tmp_path.stat().st_dev
        assert work.stat().st_mode & 0o777 == 0o700
        (work / "x").write_text("whole")
        (work / "rest").write_text("rest")
        output_file.publish(work / "x", target, force=False)
    assert target.read_text() == "whole"
    assert left(tmp_path) == ["out.iso"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_named_file_has_the_mode_of_the_users_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    target = tmp_path / "out.iso"
    before = os.umask(umask)
    monkeypatch.setattr(files, "_users_umask", 0o077)
    try:
        files.write_privately()
        with output_file.beside(target) as work:
            (work / "x").write_text("whole")
            assert (work / "x").stat().st_mode & 0o777 == 0o600
            output_file.publish(work / "x", target, force=False)
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with output_file.beside(tmp_path / "out.iso") as work:
            (work / "x").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert left(tmp_path) == []


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    old = tmp_path / output_file.WORK / "work/builder-output"
    old.mkdir(parents=True)
    (old / "disk.iso").write_text("half")
    with using(FakePodman()), output_file.beside(tmp_path / "out.iso") as work:
        assert left(work) == []
    assert left(tmp_path) == []


def test_two_at_once(tmp_path: Path) -> None:
    with (
        output_file.beside(tmp_path / "a.iso"),
        pytest.raises(PoclabError, match="another poclab"),
        output_file.beside(tmp_path / "b.iso"),
    ):
        pass
    with output_file.beside(tmp_path / "b.iso"):
        pass


def test_a_link_in_the_way(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    (tmp_path / output_file.WORK).symlink_to(other)
    with (
        pytest.raises(PoclabError, match="no directory of poclab"),
        output_file.beside(tmp_path / "out.iso"),
    ):
        pass
    assert left(other) == ["precious"]


def test_another_users_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / output_file.WORK).mkdir()
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PoclabError, match="another user"), output_file.beside(tmp_path / "out.iso"):
        pass
    assert left(tmp_path) == [output_file.WORK]


def test_what_is_in_the_way_of_the_file(tmp_path: Path) -> None:
    target = tmp_path / "out.iso"
    output_file.check(target, force=False)
    target.write_text("mine")
    with pytest.raises(PoclabError, match="is there already"):
        output_file.check(target, force=False)
    output_file.check(target, force=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(PoclabError, match="is there already"):
        output_file.check(tmp_path / "dangling", force=False)
    with pytest.raises(UsageError, match="is a directory"):
        output_file.check(tmp_path, force=True)
    with pytest.raises(UsageError, match="is a device") as caught:
        output_file.check(Path("/dev/null"), force=True)
    assert "--write" in caught.value.fix
    with pytest.raises(UsageError, match="is not there"):
        output_file.check(tmp_path / "none/out.iso", force=False)


def test_a_file_that_came_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out.iso"
    with output_file.beside(target) as work:
        (work / "x").write_text("ours")
        target.write_text("theirs")
        with pytest.raises(PoclabError, match="is there already"):
            output_file.publish(work / "x", target, force=False)
    assert target.read_text() == "theirs"
    assert left(tmp_path) == ["out.iso"]
