"""Whole disks through libvirt's streams: piece by piece, and ended when they fail."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest

from poclab.core.errors import PoclabError
from poclab.virt import pool as pool_module
from poclab.virt import pool_stream
from poclab.virt.pool_stream import StreamPool

NAME = f"base.{'0' * 64}.qcow2"
CONTENT = b"disk" * 1000


class Stream:
    """A stream of libvirt's with a content; it breaks where it is told to."""

    def __init__(self, breaks: int | None = None) -> None:
        self.at = 0
        self.content = b""
        self.breaks = breaks
        self.ended = ""

    def recv(self, _most: int) -> bytes:
        if self.breaks is not None and self.at >= self.breaks:
            raise libvirt.libvirtError("the disk cannot be read")
        piece = self.content[self.at : self.at + 700]
        self.at += len(piece)
        return piece

    def finish(self) -> None:
        self.ended += "finish"

    def abort(self) -> None:
        self.ended += "abort"


def pool(stream: Stream) -> StreamPool:
    def download(_stream: Stream, _offset: int, length: int, _flags: int) -> None:
        stream.content = CONTENT[: length or None]

    volume = SimpleNamespace(download=download)
    found = SimpleNamespace(refresh=lambda _: 0, storageVolLookupByName=lambda _: volume)
    uri = "qemu:///system"
    conn = SimpleNamespace(newStream=lambda _: stream, getURI=lambda: uri)
    return StreamPool(cast(Any, conn), cast(Any, found), "/pool", lambda: None)


def test_a_disk_is_digested_piece_by_piece() -> None:
    stream = Stream()
    found = pool(stream).digest(NAME, "sha256")
    assert found == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert stream.ended == "finish"


@pytest.mark.parametrize("read", ["digest", "read"])
def test_a_stream_that_breaks_is_ended(read: str) -> None:
    stream = Stream(breaks=1400)
    args = (NAME, "sha256") if read == "digest" else (NAME,)
    with pytest.raises(PoclabError, match="cannot be read"):
        getattr(pool(stream), read)(*args)
    assert stream.ended == "abort"


@pytest.mark.parametrize(("limit", "fits"), [(len(CONTENT), True), (len(CONTENT) - 1, False)])
def test_a_manifest_is_read_whole_or_not_at_all(
    limit: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pool_stream, pool_module):
        monkeypatch.setattr(module, "SMALL", limit)
    if fits:
        assert pool(Stream()).read(NAME) == CONTENT
    else:
        with pytest.raises(PoclabError, match="is larger than a manifest can be"):
            pool(Stream()).read(NAME)
