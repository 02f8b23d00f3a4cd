"""Disks of hostile container images: nothing outside the disk, and everything in it exact."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poclab.builders import rootfs
from poclab.builders.base import BuildRequest
from poclab.builders.direct import Direct
from poclab.containers import podman
from poclab.containers.podman import ImageInfo
from poclab.core.errors import PoclabError
from poclab.core.process import Runner, using
from poclab.core.tar_reader import TarError, TarReader
from poclab.core.units import MIB
from tests.hostile import layers
from tests.support import oddtree
from tests.support.ext4 import KINDS, Ext4, Node, expected

UUID = "11111111-2222-3333-4444-555555555555"


class Place:
    """A work directory deep below one that is watched, with a file that links point to.

    Attributes:
        work: the work directory; nothing may appear or change beside it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.work = root / "a/b/c/d/work"
        self.work.mkdir(parents=True)
        (root / "VICTIM").write_text("the user's own")
        self._before = self._beside()

    def _beside(self) -> dict[str, bytes]:
        found = {}
        for path in self._root.rglob("*"):
            if self.work not in (path, *path.parents):
                found[str(path)] = path.read_bytes() if path.is_file() else b""
        return found

    def check(self) -> None:
        """See that nothing was written beside the work directory."""
        assert self._beside() == self._before
        assert not Path("/VICTIM").exists()
        assert not Path("/INJECTED").exists()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def made(place: Place, tar: Path, size: int = 32 * MIB) -> dict[bytes, Node]:
    """The files of an ext4 made of an archive, after e2fsck found it clean."""
    tree = rootfs.Tree(tar, rootfs.listing(tar))
    rootfs.complete(tree.members, oddtree.MTIME)
    with (place.work / "disk").open("xb") as disk:
        disk.truncate(MIB + size)
    count = len(tree.members)
    rootfs.make_ext4(
        place.work, "disk", offset=MIB, size=size, uuid=UUID, files=count, epoch=oddtree.MTIME
    )
    rootfs.fill(place.work, "disk", tree, offset=MIB, size=size, epoch=oddtree.MTIME)
    rootfs.check_ext4(place.work, "disk", MIB, oddtree.MTIME)
    return Ext4(place.work / "disk", MIB).tree()


def compare(found: dict[bytes, Node], wanted: dict[bytes, Node]) -> None:
    """See that everything arrived, and that no file is there that nobody asked for."""
    names: dict[int, list[bytes]] = {}
    for path, node in found.items():
        names.setdefault(node.number, []).append(path)
    for path, want in wanted.items():
        node = found[path]
        for field in ("kind", "mode", "uid", "gid", "times", "device", "xattrs"):
            assert getattr(node, field) == getattr(want, field), (path, field)
        if node.kind != "directory":
            assert node.content == want.content, path
            same = [other for other in wanted if wanted[other] is want]
            assert sorted(names[node.number]) == sorted(same)
            assert node.links == len(same)
    parents = {path[: path.rfind(b"/")] for path in wanted if b"/" in path}
    extra = {path for path in found if path not in wanted and path not in parents}
    above = {b"", b"lost+found", b"dev", b"proc", b"run", b"sys", b"tmp"}
    assert {path for path in extra if found[path].kind != "directory"} == set()
    assert {path for path in extra if not any(p.startswith(path + b"/") for p in wanted)} <= above


@pytest.mark.parametrize("maker", layers.CARRIED, ids=lambda maker: maker.__name__)
def test_what_a_disk_can_hold_arrives_as_it_is(maker: layers.Maker, place: Place) -> None:
    tar = layers.write(place.work / "image.tar", maker)
    compare(made(place, tar), expected(tar))
    place.check()


def test_content_of_zeros_takes_no_room(place: Place) -> None:
    tar = layers.write(place.work / "image.tar", layers.sparse_content)
    found = made(place, tar)
    assert found[b"odd/zeros"].blocks == 0
    assert found[b"odd/holes"].blocks == 2 * 4096 // 512


@pytest.mark.parametrize("case", layers.REFUSED, ids=lambda case: case.name)
def test_what_no_disk_can_hold_is_refused_in_one_clear_line(
    case: layers.Refused, place: Place
) -> None:
    tar = layers.write(place.work / "image.tar", case.maker)
    with pytest.raises(PoclabError) as error:
        made(place, tar)
    assert case.why in str(error.value)
    assert all(line.isprintable() for line in error.value.lines())
    place.check()


def test_an_archive_is_never_read_into_memory(tmp_path: Path) -> None:
    """A header that claims a TiB, in a file that has one: what is read is bounded."""
    path = tmp_path / "bomb"
    path.write_bytes(layers.header(b"x", b"x", 1 << 40))
    os.truncate(path, 1 << 40)
    with path.open("rb") as stream, pytest.raises(TarError, match="extended header"):
        list(TarReader(stream))
    code = (
        "import resource, sys; from pathlib import Path; from poclab.builders import rootfs\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "try: rootfs.listing(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)"
    )
    argv = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert b"an extended header in it is too long" in done.stdout, done.stderr


class Ended(Runner):
    """The writer's process says something and ends."""

    def __init__(self, code: int, *lines: str) -> None:
        self._code, self._lines = code, lines

    def stream(self, argv: Sequence[str], on_line: Callable[[str], None], **options: Any) -> int:
        for line in self._lines:
            on_line(line)
        return self._code


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        (-11, "", "ended with status -11"),
        (1, "ModuleNotFoundError: \x1b[2Jx", "ModuleNotFoundError: ?[2Jx"),
        (1, 'failed {"path": "a\\nb", "why": "x", "kind": "other"}', r"'/a\nb': x"),
        (1, 'failed {"path": "a", "why": "No free", "kind": "full"}', "do not fit"),
    ],
)
def test_a_writer_that_fails_is_one_clear_error(
    code: int, line: str, said: str, place: Place
) -> None:
    tar = oddtree.write(place.work / "t.tar")
    tree = rootfs.Tree(tar, rootfs.listing(tar))
    with using(Ended(code, line)), pytest.raises(PoclabError) as error:
        rootfs.fill(place.work, "disk", tree, offset=MIB, size=MIB, epoch=1)
    assert said in str(error.value)
    assert error.value.fix
    assert all(text.isprintable() for text in error.value.lines())


def test_a_writer_without_a_file_system_says_so(place: Place) -> None:
    tar = oddtree.write(place.work / "t.tar")
    (place.work / "disk").write_bytes(bytes(4 * MIB))
    tree = rootfs.Tree(tar, rootfs.listing(tar))
    with pytest.raises(PoclabError, match="could not be written") as error:
        rootfs.fill(place.work, "disk", tree, offset=MIB, size=3 * MIB, epoch=1)
    assert "magic number" in error.value.why


# --- the whole builder ------------------------------------------------------------------


def build(place: Place, tar: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bytes, Node]:
    """The root file system of a disk made by the real builder; podman alone is played."""

    def export(_image: str, target: Path) -> None:
        target.write_bytes(tar.read_bytes())

    monkeypatch.setattr(podman, "export", export)
    monkeypatch.setattr(podman, "inspect", lambda image: ImageInfo(image, image, size=MIB))
    request = BuildRequest("odd", "0" * 64, place.work, place.work / "log", disk_size=128 * MIB)
    disk = Direct().build(request).disk
    raw_disk = place.work / "check.raw"
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw_disk)]
    subprocess.run(argv, check=True, timeout=60)
    return Ext4(raw_disk, 65 * MIB).tree()


NETWORKD = b"usr/lib/systemd/system/systemd-networkd.service.d"


@pytest.mark.parametrize(
    "maker",
    [
        layers.commands_in_attribute_names,
        layers.links_where_poclab_adds,
        layers.link_above_what_poclab_adds,
        layers.directory_where_poclab_adds,
    ],
    ids=lambda maker: maker.__name__,
)
def test_a_build_writes_nothing_but_its_disk(
    maker: layers.Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").mkdir()
    tar = layers.write(tmp_path / "image/t.tar", maker)
    place = Place(tmp_path)
    found = build(place, tar, monkeypatch)
    place.check()
    # What the image has at these names stays, and what is free is added.
    wanted = expected(tar)
    for name in (NETWORKD + b"/50-poclab.conf", b"usr/lib/repart.d/50-root.conf", b"etc/fstab"):
        if name in wanted:
            assert found[name].kind == wanted[name].kind
            assert found[name].content == wanted[name].content or found[name].kind == "directory"
        elif not any(wanted.get(parent) for parent in (NETWORKD, b"usr/lib/repart.d")):
            assert found[name].kind == "file"


def test_an_fstab_keeps_its_owner_and_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").mkdir()
    tar = layers.write(
        tmp_path / "image/t.tar",
        lambda tar: tar.add("etc/fstab", data=b"tmpfs /x \xff", mode=0o600, gid=7,
                            xattrs={"user.x": b"y"}),
    )  # fmt: skip
    fstab = build(Place(tmp_path), tar, monkeypatch)[b"etc/fstab"]
    assert fstab.content.startswith(b"tmpfs /x \xff\nUUID=")
    assert (fstab.mode, fstab.gid, fstab.xattrs) == (0o600, 7, {b"user.x": b"y"})


def test_a_kernel_that_is_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def maker(tar: layers.Archive) -> None:
        tar.add("boot/vmlinuz-6.9", layers.S, linkname=str(tmp_path / "VICTIM"))
        tar.add("boot/initrd.img-6.9", layers.H, linkname=f"boot/initrd.img-{oddtree.KVER}")
        tar.add("etc/machine-id.d", layers.D)

    (tmp_path / "image").mkdir()
    tar = layers.write(tmp_path / "image/t.tar", maker)
    place = Place(tmp_path)
    found = build(place, tar, monkeypatch)
    place.check()
    assert found[b"boot/vmlinuz-6.9"].kind == "symlink"


# --- trees of any kind ------------------------------------------------------------------

PARTS = st.binary(min_size=1, max_size=40).filter(
    lambda part: b"/" not in part and b"\0" not in part and part not in (b".", b"..")
)
TEXT = st.binary(min_size=1, max_size=200).filter(lambda text: b"\0" not in text)
XATTRS = st.dictionaries(
    st.builds(
        lambda prefix, name: prefix + name,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        TEXT.filter(lambda text: b"=" not in text),
    ),
    st.binary(max_size=300),
    max_size=4,
)


@st.composite
def trees(draw: st.DrawFn) -> layers.Maker:
    """A tree with names, targets, attributes and content of any bytes."""
    directories = [b"any"]
    for part in draw(st.lists(PARTS, max_size=5, unique=True)):
        directories.append(draw(st.sampled_from(directories)) + b"/" + part)
    # Not ASCII, so that no file has the name of a directory.
    names = draw(st.lists(PARTS.map(lambda part: b"\xc3\xa4" + part), max_size=12, unique=True))
    members = []
    for name in names:
        kind = draw(st.sampled_from(list(KINDS)))
        members.append(
            (
                draw(st.sampled_from(directories)) + b"/" + name,
                kind,
                draw(TEXT) if kind == tarfile.SYMTYPE else b"",
                draw(st.binary(max_size=9000)) if KINDS[kind] == "file" else b"",
                draw(XATTRS),
                draw(st.integers(0, 0o7777)),
                (draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))),
                draw(st.integers(-(2**31), 2**34 - 2**31 - 1)),
                (draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))),
            )
        )

    def maker(tar: layers.Archive) -> None:
        for directory in directories:
            tar.add(directory.decode("utf-8", "surrogateescape"), layers.D)
        for name, kind, target, data, xattrs, mode, (uid, gid), mtime, device in members:
            node = KINDS[kind] in ("char", "block")
            tar.add(
                name.decode("utf-8", "surrogateescape"),
                kind,
                data,
                linkname=target.decode("utf-8", "surrogateescape"),
                xattrs={k.decode("utf-8", "surrogateescape"): v for k, v in xattrs.items()},
                mode=mode,
                uid=uid,
                gid=gid,
                mtime=mtime,
                devmajor=device[0] if node else 0,
                devminor=device[1] if node else 0,
            )

    return maker


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(maker=trees())
def test_any_tree_arrives_as_it_is(
    maker: layers.Maker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = Place(tmp_path_factory.mktemp("any"))
    tar = layers.write(place.work / "image.tar", maker)
    compare(made(place, tar), expected(tar))
    place.check()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    maker = data.draw(st.sampled_from(layers.CARRIED))
    path = tmp_path_factory.mktemp("fuzz") / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        maker(layers.Archive(tar))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(PoclabError):
        rootfs.listing(path)
