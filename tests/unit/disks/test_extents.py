"""Where files are on the disk: the sums, against counting byte by byte, and a real file."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.disks import extents
from poclab.disks.extents import Layout, Range, freed, tally, union

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=8).map(
    lambda items: [(begin, begin + size) for begin, size in items]
)
many = st.lists(ranges, max_size=6)


def places(found: list[Range]) -> set[int]:
    return {byte for begin, end in found for byte in range(begin, end)}


@given(ranges)
def test_a_union_has_each_byte_once_and_in_order(found: list[Range]) -> None:
    merged = union(found)
    assert places(merged) == places(found)
    assert sum(end - begin for begin, end in merged) == len(places(found))
    assert all(left[1] < right[0] for left, right in pairwise(merged))


@given(many)
def test_a_tally_counts_bytes(found: list[list[Range]]) -> None:
    sets = [places(each) for each in found]
    each, total = tally([union(item) for item in found])
    for number, item in enumerate(each):
        others = set[int]().union(*sets[:number], *sets[number + 1 :])
        assert item.allocated == len(sets[number])
        assert item.unique == len(sets[number] - others)
    assert total.allocated == len(set[int]().union(*sets))
    assert total.unique == sum(item.unique for item in each)


@given(many, ranges)
def test_what_goes_last_frees_what_nobody_keeps(
    found: list[list[Range]], kept: list[Range]
) -> None:
    left = [places(each) for each in [*found, kept]]
    sizes = freed([union(item) for item in found], union(kept))
    assert len(sizes) == len(found)
    for number, size in enumerate(sizes):
        before = set[int]().union(*left[number:])
        after = set[int]().union(*left[number + 1 :])
        assert size == len(before) - len(after)


def test_places_beyond_any_disk_are_no_trouble() -> None:
    far = 7 * 2**64
    each, total = tally([[(0, 10)], [(5, 10), (far, far + 3)]])
    assert [(item.allocated, item.unique) for item in each] == [(10, 5), (8, 3)]
    assert (total.allocated, total.unique) == (13, 8)


# --- reading ------------------------------------------------------------------------------


def answer(*found: tuple[int, int, int, int]) -> Any:
    """An ioctl that gives these extents, three at a time: logical, physical, length, flags."""

    def ioctl(_descriptor: int, request: int, buffer: bytearray) -> int:
        assert request == 0xC020660B
        start = extents._FIEMAP.unpack_from(buffer)[0]
        rest = [each for each in found if each[0] >= start][:3]
        extents._FIEMAP.pack_into(buffer, 0, start, 0, 0, len(rest), 0, 0)
        for number, each in enumerate(rest):
            place = extents._FIEMAP.size + number * extents._EXTENT.size
            extents._EXTENT.pack_into(buffer, place, *each)
        return 0

    return ioctl


@pytest.mark.parametrize(
    ("found", "layout"),
    [
        ((), Layout((), 0)),
        (((0, 4096, 4096, 1),), Layout(((4096, 8192),), 0)),
        # Not written out yet, or among the metadata: no place that another file could have.
        (((0, 0, 100, 0x207), (4096, 0, 4096, 0x6)), Layout((), 4196)),
        # Written ahead of use (0x800), and shared (0x2000): places like any other.
        (((0, 8192, 4096, 0x800), (4096, 0, 4096, 0x2001)), Layout(((8192, 12288), (0, 4096)), 0)),
        (
            tuple((at, at + 4096, 4096, 0) for at in range(0, 10 * 8192, 8192)),
            Layout(tuple((at + 4096, at + 8192) for at in range(0, 10 * 8192, 8192)), 0),
        ),
        (((0, 8192, 131072, 0x8),), None),
    ],
    ids=["empty", "one", "no place", "flags", "several calls", "compressed"],
)
def test_what_the_kernel_says(
    found: Any, layout: Layout | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents, "ioctl", answer(*found))
    assert extents.read(0) == layout


def refuse(*_: object) -> int:
    raise OSError("Operation not supported")


def test_without_an_answer_the_count_of_blocks_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(10_000))
    os.sync()
    blocks = path.stat().st_blocks * 512
    assert blocks >= 10_000
    for ioctl in (refuse, answer((0, 8192, 131072, 0x9))):
        monkeypatch.setattr(extents, "ioctl", ioctl)
        assert extents.of_file(path) == Layout((), blocks, known=False)
    with pytest.raises(FileNotFoundError):
        extents.of_file(tmp_path / "none")
