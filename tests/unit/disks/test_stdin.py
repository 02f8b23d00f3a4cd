"""Standard input to a sparse file."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from poclab.core.errors import PoclabError
from poclab.core.units import GIB, KIB, MIB
from poclab.disks.stdin import spool
from tests.support import b3sum
from tests.support.disks import qemu_img, raw

CONTENTS = {
    "data": os.urandom(3 * MIB + 7),
    "short": b"x",
    "zeros": bytes(5 * MIB + 3),
    "mixed": b"".join(os.urandom(64 * KIB) + bytes(192 * KIB) for _ in range(20)),
    "edge": bytes(MIB - 1) + b"x" + bytes(2 * MIB),
    "ends in part": os.urandom(MIB) + bytes(100 * KIB),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_spools(name: str, tmp_path: Path) -> None:
    data = CONTENTS[name]
    target = tmp_path / "out"
    found = spool(io.BytesIO(data), target, expected="raw")
    assert target.read_bytes() == data
    assert found == b3sum.digest(data)
    assert target.stat().st_mode & 0o777 == 0o600


def test_zeros_take_no_room(tmp_path: Path) -> None:
    spool(io.BytesIO(CONTENTS["zeros"]), tmp_path / "out", expected="raw")
    assert (tmp_path / "out").stat().st_blocks == 0
    spool(io.BytesIO(CONTENTS["mixed"]), tmp_path / "mixed", expected="raw")
    assert (tmp_path / "mixed").stat().st_blocks * 512 <= 20 * 64 * KIB + 64 * KIB


class Endless:
    """A stream without end that begins as it is told, and counts what is taken of it."""

    def __init__(self, head: bytes = b"") -> None:
        self._head = head
        self.taken = 0

    def read(self, size: int) -> bytes:
        piece = self._head[self.taken : self.taken + size].ljust(size, b"\0")
        self.taken += size
        return piece


def test_a_stream_that_never_ends(tmp_path: Path) -> None:
    disk = raw(tmp_path / "disk").read_bytes()
    stream = Endless(disk)
    with pytest.raises(PoclabError, match="longer than 16 MiB"):
        spool(cast(BinaryIO, stream), tmp_path / "out", limit=16 * MIB)
    assert stream.taken == 17 * MIB


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"LUKS\xba\xbe\0\1", "LUKS"),
        (bytes(32768) + b"\1CD001\1\0", "ISO"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"QED\0", "QED"),
        (b"", "no partition table"),
        (b"y\n" * MIB, "no partition table"),
    ],
)
def test_is_refused_at_its_beginning(head: bytes, expected: str, tmp_path: Path) -> None:
    stream = Endless(head)
    with pytest.raises(PoclabError, match=expected):
        spool(cast(BinaryIO, stream), tmp_path / "out")
    assert stream.taken == 2 * MIB


@pytest.mark.parametrize("expected", ["qcow2", "vmdk", "vhdx", "vdi", "ova"])
def test_is_refused_when_it_begins_like_something_else(expected: str, tmp_path: Path) -> None:
    for name, head in (("disk", raw(tmp_path / "raw").read_bytes()), ("nothing", b"")):
        stream = Endless(head)
        with pytest.raises(PoclabError, match=f"not {expected}"):
            spool(cast(BinaryIO, stream), tmp_path / name, expected=expected)
        assert stream.taken == 2 * MIB


@pytest.mark.parametrize("expected", ["raw", "vpc"])
def test_begins_with_anything_when_the_user_says_so(expected: str, tmp_path: Path) -> None:
    spool(io.BytesIO(b"y\n" * 2 * MIB), tmp_path / "out", expected=expected)
    assert (tmp_path / "out").stat().st_size == 4 * MIB


def test_only_raw_may_look_like_nothing(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=full", tmp_path / "disk", "4M")
    data = (tmp_path / "disk").read_bytes()
    with pytest.raises(PoclabError, match="a qcow2 disk, not raw"):
        spool(io.BytesIO(data), tmp_path / "out", expected="raw")
    spool(io.BytesIO(data), tmp_path / "taken", expected="qcow2")


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(PoclabError, match="empty"):
        spool(io.BytesIO(b""), tmp_path / "out")


def test_leaves_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=100 * GIB, free=GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PoclabError, match="no room"):
        spool(io.BytesIO(bytes(MIB)), tmp_path / "out", expected="raw")
