"""Whole disks through libvirt's streams: piece by piece, and ended when they fail."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest

from poclab.errors import PoclabError
from poclab.virt import streampool
from poclab.virt.streampool import StreamPool

NAME = f"base.{'0' * 64}.qcow2"
CONTENT = b"disk" * 1000


class Stream:
    """A stream of libvirt's with a content; it breaks where it is told to."""

    def __init__(self, breaks: int | None = None) -> None:
        self.at = 0
        self.breaks = breaks
        self.ended = ""

    def recv(self, _most: int) -> bytes:
        if self.breaks is not None and self.at >= self.breaks:
            raise libvirt.libvirtError("the disk cannot be read")
        piece = CONTENT[self.at : self.at + 700]
        self.at += len(piece)
        return piece

    def finish(self) -> None:
        self.ended += "finish"

    def abort(self) -> None:
        self.ended += "abort"


def pool(stream: Stream) -> StreamPool:
    volume = SimpleNamespace(download=lambda *_: 0)
    found = SimpleNamespace(refresh=lambda _: 0, storageVolLookupByName=lambda _: volume)
    uri = "qemu:///system"
    conn = SimpleNamespace(newStream=lambda _: stream, getURI=lambda: uri)
    return StreamPool(cast(Any, conn), cast(Any, found), "/pool", lambda: None)


def test_a_disk_is_digested_piece_by_piece() -> None:
    stream = Stream()
    found = pool(stream).digest(NAME, "sha256")
    assert found == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert stream.ended == "finish"


def test_a_volume_too_large_to_be_read_whole_is_not_read_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first part of a manifest would count as cut short, and so as garbage."""
    monkeypatch.setattr(streampool, "SMALL", len(CONTENT) - 1)
    with pytest.raises(PoclabError, match="larger than a manifest can be"):
        pool(Stream()).read(NAME)
    monkeypatch.setattr(streampool, "SMALL", len(CONTENT))
    assert pool(Stream()).read(NAME) == CONTENT


@pytest.mark.parametrize("read", ["digest", "read"])
def test_a_stream_that_breaks_is_ended(read: str) -> None:
    stream = Stream(breaks=1400)
    args = (NAME, "sha256") if read == "digest" else (NAME,)
    with pytest.raises(PoclabError, match="cannot be read"):
        getattr(pool(stream), read)(*args)
    assert stream.ended == "abort"
