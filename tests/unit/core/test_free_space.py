"""How much of a file system is filled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from poclab.builders import rootfs
from poclab.builders.base import BuildRequest
from poclab.builders.direct import Direct
from poclab.containers import podman as containers
from poclab.containers.podman import ImageInfo
from poclab.core import free_space
from poclab.core.errors import PoclabError
from poclab.core.free_space import Room
from poclab.core.units import GIB, MIB, TIB
from poclab.disks import pool_disks, qemu_img
from poclab.virt.pool_stream import StreamPool
from tests.support import oddtree
from tests.support.disks import raw

NO_ROOM = "there is no room for 'a[.]img'"


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(TIB, GIB), (20 * GIB, GIB), (400 * MIB, 20 * MIB), (12 * MIB, 12 * MIB // 20), (0, 0)],
)
def test_the_reserve_is_1_gib_or_a_twentieth(total: int, reserve: int) -> None:
    found = Room(total, total)
    assert (found.reserve, found.left) == (reserve, total - reserve)
    assert Room(total, reserve // 2).left == 0


def free(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """Have a file system of 100 GiB with so much free, in turn; the last one stays."""
    left = list(sizes)
    usage = shutil.disk_usage("/")

    def answer(path: object) -> object:
        return usage._replace(total=100 * GIB, free=left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(shutil, "disk_usage", answer)


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2 * GIB)
    assert free_space.check(tmp_path, "x", needed=GIB) == GIB
    with pytest.raises(PoclabError, match="there is no room for x") as error:
        free_space.check(tmp_path, "x", needed=GIB + 1, place=Path("/pool"))
    assert error.value.why == "/pool has 2 GiB free, 1 GiB of it reserved for running VMs"


def test_no_conversion_begins_below_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, GIB)
    with pytest.raises(PoclabError, match=NO_ROOM):
        pool_disks.convert_to_qcow2(raw(tmp_path / "a.img"), "raw", tmp_path / "b.qcow2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.img"]


def test_a_conversion_ends_at_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has 1 MiB of data, and 512 KiB of the file system may be filled."""
    free(monkeypatch, GIB + MIB // 2)
    with pytest.raises(PoclabError, match=NO_ROOM):
        pool_disks.convert_to_qcow2(raw(tmp_path / "a.img"), "raw", tmp_path / "b.qcow2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.img"]


def test_a_conversion_ends_when_somebody_else_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.img"
    os.truncate(raw(source), 1 << 43)  # its holes alone take minutes to copy
    with source.open("r+b") as file:
        for number in range(1 << 12):
            file.seek(number << 31)
            file.write(b"x")
    free(monkeypatch, 50 * GIB, 50 * GIB, GIB - 1)
    with pytest.raises(PoclabError, match=NO_ROOM):
        qemu_img.convert(["-f", "raw", str(source)], tmp_path / "b.qcow2", "'a.img'")
    assert [path.name for path in tmp_path.iterdir()] == ["a.img"]


# --- the direct builder ---------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_no_build_begins_below_the_reserve(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helps depends on where the work directory is: in the pool, or in the cache."""
    if cached:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    work = tmp_path / "poclab/staging/tmp.1"
    work.mkdir(parents=True)
    image = ImageInfo("0" * 64, "odd", size=200 * MIB)
    monkeypatch.setattr(containers, "inspect", lambda _image: image)
    free(monkeypatch, GIB + 500 * MIB)
    with pytest.raises(PoclabError, match="no room for the build, which takes about 756 MiB") as e:
        Direct().build(BuildRequest("odd", image.id, work, work / "log"))
    assert f"{work.parent} has 1.5 GiB free, 1 GiB of it reserved" in e.value.why
    assert ("XDG_CACHE_HOME" in e.value.fix, "poclab gc" in e.value.fix) == (cached, not cached)
    assert list(work.iterdir()) == []


def test_an_export_ends_when_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows before how large it becomes: a sparse file of an image has no holes in it."""
    programs, work = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    podman = programs / "podman"
    podman.write_text('#!/bin/sh\nif [ "$1" = export ]; then exec tail -f /dev/null; fi\n')
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    free(monkeypatch, 50 * GIB, 50 * GIB, GIB - 1)
    with pytest.raises(PoclabError, match="no room for the container image's files"):
        containers.export("0" * 64, work / "image.tar")
    free(monkeypatch, GIB)
    with pytest.raises(PoclabError, match="no room for the container image's files"):
        containers.export("0" * 64, work / "image.tar")


def test_the_files_of_an_image_leave_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = oddtree.write(tmp_path / "t.tar")
    work = tmp_path / "work"
    work.mkdir()
    tree = rootfs.Tree(tar, rootfs.listing(tar))
    (work / "disk").touch()
    os.truncate(work / "disk", 32 * MIB)
    given = {"offset": 0, "size": 32 * MIB, "epoch": 1}
    uuid = "11111111-2222-3333-4444-555555555555"
    rootfs.make_ext4(work, "disk", uuid=uuid, files=1000, **given)
    free(monkeypatch, GIB - 1)
    with pytest.raises(PoclabError, match="no room for the image's files"):
        rootfs.fill(work, "disk", tree, **given)


def test_a_pool_behind_libvirt_keeps_its_reserve_too() -> None:
    pool = StreamPool.__new__(StreamPool)
    pool.directory = "/pool"
    pool._pool = SimpleNamespace(info=lambda: [2, 100 * GIB, 98 * GIB, 2 * GIB])
    pool._check_room(GIB)
    with pytest.raises(PoclabError, match="there is no room for a disk of") as error:
        pool._check_room(GIB + 1)
    assert "/pool has 2 GiB free" in error.value.why
