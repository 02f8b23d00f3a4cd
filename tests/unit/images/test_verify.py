"""What `image verify` calls damaged, and what it says to do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.disks.qcow2_header import Head, read_head
from poclab.images.verify import Content, advice, broken_manifest, fault, read
from poclab.model.version import Origin, Ref, Version
from poclab.model.version_volumes import base_volume, manifest_volume, ref_of
from poclab.store.versions import Stored
from tests.support import b3sum, make, strategies

PARENT = "sha256:" + "5" * 64


def header(size: int, backing: str = "") -> bytes:
    """The beginning of a qcow2 file (QEMU, docs/interop/qcow2.txt)."""
    name = backing.encode()
    place = (512).to_bytes(8) + len(name).to_bytes(4) if name else bytes(12)
    head = b"QFI\xfb" + (3).to_bytes(4) + place + (16).to_bytes(4) + size.to_bytes(8)
    return head.ljust(512, b"\0") + name


def stored(content: bytes, size: int, parents: tuple[str, ...] = ()) -> Version:
    """A version whose disk has this content."""
    digest = b3sum.digest(content)
    return replace(
        make.version(), digest=digest, size=len(content), virtual_size=size, parents=parents
    )


def pieces(content: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The content in pieces of any sizes."""
    while content:
        count = cuts.pop() if cuts else len(content)
        yield content[:count]
        content = content[count:]


def seen(content: bytes) -> Content:
    return read([content], "blake3", "x")


@given(st.binary(max_size=3000), st.lists(st.integers(1, 700)), st.integers(1, 2**62))
def test_what_is_read_does_not_depend_on_how_it_comes(
    tail: bytes, cuts: list[int], size: int
) -> None:
    content = header(size, "base.qcow2") + tail
    found = read(pieces(content, cuts), "blake3", "x")
    assert found == seen(content)
    assert found.head is not None
    assert found.head.virtual_size == size
    assert found.head.backing == "base.qcow2"
    assert found.size == len(content)


@given(st.binary(max_size=40))
def test_a_header_is_one_or_none(data: bytes) -> None:
    assert (read_head(data) is None) == (len(data) < 32 or data[:4] != b"QFI\xfb")


@given(st.randoms(use_true_random=False), st.booleans())
def test_any_change_of_any_byte_is_found(rng: random.Random, layered: bool) -> None:
    below = PARENT if layered else ""
    content = header(4096, base_volume(below) if below else "") + rng.randbytes(2000)
    version = stored(content, 4096, (below,) if below else ())
    assert fault(seen(content), version.digest, below, version) == ""
    at = rng.randrange(len(content))
    changed = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    assert "was changed: its digest is" in fault(seen(changed), version.digest, below, version)
    # Also when no version has this disk for its own any more, so that its size is not known.
    assert "was changed" in fault(seen(changed), version.digest, below, None)
    cut = content[:at]
    assert f"has {at} bytes, {len(content)} were stored" == fault(
        seen(cut), version.digest, below, version
    )


@pytest.mark.parametrize(
    ("head", "below", "problem"),
    [
        (None, "", "is no qcow2 disk"),
        (Head(100, "/etc/passwd"), "", "stands on /etc/passwd, by the manifest on nothing"),
        (Head(100, ""), PARENT, f"stands on nothing, by the manifest on {base_volume(PARENT)}"),
        (Head(99, ""), "", "has a size of 99, by the manifest 100"),
    ],
)
def test_a_manifest_that_says_otherwise(head: Head | None, below: str, problem: str) -> None:
    version = replace(make.version(), size=5, virtual_size=100)
    found = Content(version.digest, 5, head)
    assert fault(found, version.digest, below, version) == problem


def by(kind: str, source: str, digest: str = "") -> Version:
    return replace(make.version("shop:v1"), origin=Origin(kind, source, digest))


def test_what_helps_goes_by_the_origin() -> None:
    built = by("built", "localhost/poclab/shop:v1")
    base = base_volume(built.digest)
    # The name is taken while there is a file, and the cache would give the same disk again.
    assert "poclab image build shop --tag NEWTAG --no-cache;" in advice(built, built.digest)
    assert "poclab image build shop --tag v1;" in advice(built, built.digest, gone=True)
    imported = by("imported", "my disk.vhdx", "sha256:" + "7" * 64)
    said = advice(imported, imported.digest)
    assert f"poclab image import shop:NEWTAG 'my disk.vhdx' --digest sha256:{'7' * 64};" in said
    piped = by("imported", "standard input")
    assert "poclab image import shop:NEWTAG FILE;" in advice(piped, piped.digest)
    for version in (by("committed", "acme/vm1"), None):
        assert advice(version, built.digest) == f"put {base} back from a backup"


def test_a_manifest_of_a_newer_format_is_unknown_and_not_damaged() -> None:
    row = broken_manifest(Stored(Ref("shop", "v1"), fault="it is of a newer format", newer=True))
    assert (row.result, row.problem) == ("unknown", "a newer poclab made it")
    row = broken_manifest(Stored(Ref("shop", "v1"), fault="its checksum does not hold"))
    assert (row.result, row.digest) == ("damaged", "")
    assert row.problem == "its manifest is bad: its checksum does not hold"
    assert "put manifest.shop.v1.json back" in row.fix


@given(strategies.refs)
def test_a_manifest_s_name_leads_back_to_its_version(ref: Ref) -> None:
    assert ref_of(manifest_volume(ref)) == ref


@pytest.mark.parametrize(
    "name", ["manifest.json", "manifest.Shop.v1.json", "manifest.shop.v1", "base.1.qcow2", "x"]
)
def test_other_volumes_are_no_manifests(name: str) -> None:
    assert ref_of(name) is None
