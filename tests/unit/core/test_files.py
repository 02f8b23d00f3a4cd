"""What is done to files of any kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poclab.core import files
from poclab.core.errors import PoclabError


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../a", "/etc/passwd", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(PoclabError, match="invalid file name") as caught:
        files.below(Path("/pool"), name)
    assert caught.value.why == "it would lead out of /pool"


@pytest.mark.parametrize("name", ["a", "...", ".a", "-rf", "a b", "a\n", "json:{}", "$(id)"])
def test_any_other_name_is_one_of_the_directory(name: str) -> None:
    assert files.below(Path("/pool"), name).parent == Path("/pool")


def test_configuration_is_whole_and_for_everybody_to_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.d/65-x.rules"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.parent.mkdir()
    path.with_name(f".{path.name}.new").symlink_to(victim)  # of whom it may be
    for text in (b"one", b"two"):
        files.write_configuration(path, text)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (text, 0o644)
    assert victim.read_text() == "precious"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_directories_for_configuration_are_for_everybody_to_enter(
    tmp_path: Path, umask: int
) -> None:
    tmp_path.chmod(0o700)  # what was there keeps its mode
    (tmp_path / ".etc.new").mkdir()  # an interrupted command's
    path = tmp_path / "etc/poclab/rules.d/x.conf"
    before = os.umask(umask)
    try:
        files.write_configuration(path, b"text")
    finally:
        os.umask(before)
    made = (path.parent, path.parent.parent, tmp_path / "etc")
    assert [each.stat().st_mode & 0o7777 for each in made] == [0o755] * 3
    assert [entry.name for entry in (tmp_path / "etc").iterdir()] == ["poclab"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["etc"]
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_no_directory_for_configuration_is_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o700)
    (tmp_path / ".etc.new").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="directory"):
        files.write_configuration(tmp_path / "etc/x.conf", b"text")
    assert (tmp_path / "victim").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "victim").iterdir())
