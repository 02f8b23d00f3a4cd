"""qcow2 files that are made and named without a word on a command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from poclab.core import process
from poclab.core.errors import PoclabError
from poclab.core.process import Result, Runner
from poclab.disks import pool_disks, qcow2_file, qcow2_header
from tests.support.disks import qemu_img

MIB = 1024**2


def qcow2(path: Path, *, size: str) -> Path:
    """An empty disk."""
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    return path


class Listening(Runner):
    """Runs real processes, and keeps what who lists processes would see of them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def run(self, argv: Sequence[str], **options: Any) -> Result:
        """Run it."""
        self.seen.append(" ".join(argv))
        return super().run(argv, **options)


@pytest.fixture
def listening() -> Iterator[Listening]:
    listener = Listening()
    with process.using(listener):
        yield listener


@pytest.mark.parametrize("length", [1, 60, 400, 800])
def test_an_overlay_is_what_qemu_img_makes(tmp_path: Path, length: int) -> None:
    below = tmp_path
    while len(str(below)) < length:
        below = below / ("d" * 100)
    below.mkdir(parents=True, exist_ok=True)
    base = qcow2(below / "base.secret.qcow2", size="8M")
    command = ("create", "-q", "-f", "qcow2")
    qemu_img(*command, "-b", base, "-F", "qcow2", tmp_path / "a", "16M")
    pool_disks.create_overlay(tmp_path / "b", base, "qcow2", 16 * MIB)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    qemu_img(*command, tmp_path / "c", "16M")
    pool_disks.create_empty(tmp_path / "d", 16 * MIB)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


def test_a_renamed_disk_below_is_what_rebase_makes(tmp_path: Path) -> None:
    base = qcow2(tmp_path / "a-base-with-a-long-name.qcow2", size="8M")
    for name in ("longer/" * 30 + "x", "short", str(base)):
        for path in (tmp_path / "a", tmp_path / "b"):
            path.unlink(missing_ok=True)
            pool_disks.create_overlay(path, base, "qcow2", 8 * MIB)
        qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, tmp_path / "a")
        with (tmp_path / "b").open("r+b", buffering=0) as file:
            qcow2_file.rename_backing(file.fileno(), name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert qcow2_header.backing_file(tmp_path / "b") == name


def test_a_header_without_room_is_left_as_it_is(tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base", size="8M")
    path = tmp_path / "overlay"
    pool_disks.create_overlay(path, base, "qcow2", 8 * MIB)
    good = path.read_bytes()
    odd = {
        "none": qcow2(tmp_path / "plain", size="8M").read_bytes(),
        "raw": b"raw" * 100000,
        "empty": b"",
        "short": good[:70],
        "beyond": good[:8] + (1 << 40).to_bytes(8) + good[16:],
        "long": good[:16] + (1 << 20).to_bytes(4) + good[20:],
        "bits": good[:20] + (2**32 - 1).to_bytes(4) + good[24:],
        "behind": good[:60000] + b"x" + good[60001:],
    }
    for kind, content in odd.items():
        path.write_bytes(content)
        with path.open("r+b", buffering=0) as file, pytest.raises(PoclabError, match="cannot name"):
            qcow2_file.rename_backing(file.fileno(), "/other")
        assert path.read_bytes() == content, kind
    path.write_bytes(good)
    with path.open("r+b", buffering=0) as file, pytest.raises(PoclabError, match="cannot name"):
        qcow2_file.rename_backing(file.fileno(), "/" + "x" * 1023)
    assert path.read_bytes() == good


def test_no_name_of_a_disk_is_on_a_command_line(tmp_path: Path, listening: Listening) -> None:
    base = qcow2(tmp_path / "base.secret.qcow2", size="8M")
    overlay = tmp_path / "overlay.secret.qcow2"
    pool_disks.create_empty(tmp_path / "data.secret.qcow2", MIB)
    pool_disks.create_overlay(overlay, base, "qcow2", 8 * MIB)
    assert pool_disks.is_blank(overlay)
    pool_disks.resize(overlay, 16 * MIB)
    pool_disks.merge(overlay)
    assert [line.split()[1] for line in listening.seen] == [
        "create", "create", "check", "resize", "commit",
    ]  # fmt: skip
    assert not [line for line in listening.seen if "secret" in line or str(tmp_path) in line]


def test_a_disk_on_a_relative_name_is_found_all_the_same(
    tmp_path: Path, listening: Listening
) -> None:
    qcow2(tmp_path / "base", size="8M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp_path / "overlay")
    pool_disks.resize(tmp_path / "overlay", 16 * MIB)
    assert qcow2_header.virtual_size(tmp_path / "overlay") == 16 * MIB


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_disk_is_its_owners_only(tmp_path: Path, umask: int) -> None:
    base = qcow2(tmp_path / "base", size="8M")
    before = os.umask(umask)
    try:
        pool_disks.create_empty(tmp_path / "a", MIB)
        pool_disks.create_overlay(tmp_path / "b", base, "qcow2")
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o7777 for name in "ab"} == {0o600}


def test_a_disk_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PoclabError, match=r"d\.qcow2. cannot be made"):
        pool_disks.create_empty(tmp_path / "d.qcow2", 2**63)
    with pytest.raises(PoclabError, match="missing"):
        pool_disks.create_overlay(tmp_path / "d.qcow2", tmp_path / "missing", "qcow2", MIB)
    assert list(tmp_path.iterdir()) == []
