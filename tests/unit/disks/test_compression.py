"""Packed disks: what comes back, what is damaged, and which versions stay as they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.core.units import MIB
from poclab.disks import compression
from poclab.disks.compression import DamagedError
from poclab.images import pack
from poclab.model.version import Version
from poclab.model.version_volumes import base_volume, packed_volume, with_packed
from tests.support import b3sum, make


def disk(path: Path, size: int = 3 * MIB) -> str:
    """A sparse file with some data; gives its digest."""
    with path.open("wb") as file:
        file.write(b"head" * 5000)
        file.seek(MIB)
        file.write(os.urandom(100_000))
        file.truncate(size)
    return b3sum.digest(path.read_bytes())


def test_a_disk_comes_back_with_its_holes(tmp_path: Path) -> None:
    source, packed, back = (tmp_path / name for name in ("disk", "disk.zst", "back"))
    digest = disk(source)
    compression.pack(source, packed, digest)
    assert packed.stat().st_size < 110_000
    compression.unpack(packed, back, digest)
    assert back.read_bytes() == source.read_bytes()
    assert back.stat().st_blocks <= source.stat().st_blocks + 256
    assert compression.packed_digest(packed, digest) == digest


def test_others_can_read_it(tmp_path: Path) -> None:
    source, packed = tmp_path / "disk", tmp_path / "disk.zst"
    compression.pack(source, packed, disk(source))
    subprocess.run(["zstd", "-q", "-d", packed, "-o", tmp_path / "back"], check=True, timeout=30)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=300_000), zeros=st.integers(0, 3))
def test_every_content_comes_back(
    data: bytes, zeros: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = tmp_path_factory.mktemp("pack")
    content = data + bytes(zeros * 65536) + data[::2]
    (work / "disk").write_bytes(content)
    digest = b3sum.digest(content)
    compression.pack(work / "disk", work / "packed", digest)
    compression.unpack(work / "packed", work / "back", digest)
    assert (work / "back").read_bytes() == content


def test_a_disk_that_changed_is_not_packed(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    digest = disk(source)
    with source.open("r+b") as file:
        file.write(b"X")
    with pytest.raises(DamagedError, match="is damaged"):
        compression.pack(source, tmp_path / "packed", digest)


@pytest.mark.parametrize("damage", ["flip", "cut", "head", "empty", "swap"])
def test_a_damaged_packed_disk_is_noticed(damage: str, tmp_path: Path) -> None:
    source, packed = tmp_path / "disk", tmp_path / "disk.zst"
    digest = disk(source)
    compression.pack(source, packed, digest)
    data = bytearray(packed.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "head":
        data[0] ^= 1
    elif damage == "swap":
        other = tmp_path / "other"
        compression.pack(other, tmp_path / "other.zst", disk(other))
        data = bytearray((tmp_path / "other.zst").read_bytes())
    packed.write_bytes(data[: {"cut": len(data) - 100, "empty": 0}.get(damage)])
    with pytest.raises(DamagedError, match=r"disk\.zst. is damaged"):
        compression.unpack(packed, tmp_path / "back", digest)


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source, packed = tmp_path / "disk", tmp_path / "disk.zst"
    digest = disk(source)
    packed.write_text("mine")
    with pytest.raises(FileExistsError):
        compression.pack(source, packed, digest)
    assert packed.read_text() == "mine"


def test_a_large_window_does_not_take_the_memory(tmp_path: Path) -> None:
    """A packed file may ask for as much memory as it likes; it gets what ours need."""
    source = tmp_path / "disk"
    source.write_bytes(os.urandom(1000) + bytes(200 * MIB))
    argv = ["zstd", "-q", "-1", "--long=29", str(source), "-o", str(tmp_path / "huge")]
    subprocess.run(argv, check=True, timeout=60)
    with pytest.raises(DamagedError):
        compression.packed_digest(tmp_path / "huge", "blake3")


# --- which --------------------------------------------------------------------------------


def version(tag: str, number: int, *parents: int, image: str = "shop") -> Version:
    return make.version(
        f"{image}:{tag}",
        digest=_digest(number),
        parents=tuple(map(_digest, parents)),
        created=f"2026-01-01T00:00:0{number}Z",
    )


def _digest(number: int) -> str:
    return "sha256:" + f"{number:064x}"


def base(number: int) -> str:
    return base_volume(_digest(number))


def test_the_latest_of_each_image_stays() -> None:
    found = [version("v1", 1, image="a"), version("v1", 2, image="b"), version("v2", 3, image="b")]
    assert pack.active(found, set()) == {base(1), base(3)}


def test_what_vms_stand_on_stays_with_what_is_below() -> None:
    found = [version("v1", 1), version("v2", 2, 1), version("v3", 3)]
    assert pack.active(found, {base(2)}) == {base(1), base(2), base(3)}
    assert pack.active(found, set()) == {base(3)}


def test_what_the_latest_is_layered_on_stays() -> None:
    found = [version("v1", 1), version("v2", 2), version("v3", 3, 1)]
    assert pack.active(found, set()) == {base(1), base(3)}


def test_an_unknown_base_that_is_used_stays() -> None:
    assert pack.active([], {base(7)}) == {base(7)}


@pytest.mark.parametrize(
    ("text", "expected"), [("", True), ("1", True), ("0", False), ("no", False), ("Off", False)]
)
def test_the_variable(text: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCLAB_PACK", text)
    assert pack.wanted() == expected


def test_names_of_packed_bases() -> None:
    name = base(1)
    assert packed_volume(name) == f"{name}.zst"
    assert with_packed(["data.a.b.zst", packed_volume(name)]) == {
        "data.a.b.zst",
        packed_volume(name),
        name,
    }
