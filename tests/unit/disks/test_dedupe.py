"""Equal blocks: digests, where others have them, and what the kernel is asked to share.

The kernel's part has a stand-in here that copies bytes where it would share them; the real one
is asked in tests/integration/test_sharing.py.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.disks import dedupe, fingerprints
from poclab.disks.dedupe import Disk
from poclab.disks.fingerprints import BLOCK, DIGEST, Run, Window
from tests.support import b3sum

# A block by its letter; 0 is zeros.
Letters = Sequence[int]
letters = st.lists(st.integers(0, 5), max_size=40)


def content(found: Letters) -> bytes:
    return b"".join(bytes([letter]) * BLOCK for letter in found)


def digests(found: Letters, tmp_path: Path) -> list[array[int]]:
    path = tmp_path / "blocks"
    path.write_bytes(content(found))
    out = io.BytesIO()
    with path.open("rb") as file:
        fingerprints.fingerprint(file.fileno(), out)
    out.seek(0)
    return list(fingerprints.digests(out))


def runs(new: Letters, sources: Sequence[Letters], tmp_path: Path) -> list[Run]:
    window = Window(digests(new, tmp_path))
    for number, source in enumerate(sources):
        window.look_in(number, digests(source, tmp_path))
    return list(window.runs())


def test_moved_blocks_are_one_run(tmp_path: Path) -> None:
    assert runs([9, 9, 1, 2, 3], [[7, 1, 2, 3]], tmp_path) == [Run(0, 1, 2, 3)]


def test_the_first_file_that_has_a_block_is_taken(tmp_path: Path) -> None:
    found = runs([1, 2, 3], [[2], [1, 2, 3]], tmp_path)
    assert found == [Run(1, 0, 0, 1), Run(0, 0, 1, 1), Run(1, 2, 2, 1)]


def test_zeros_are_left_out(tmp_path: Path) -> None:
    assert runs([0, 0, 1, 0], [[0, 1, 0]], tmp_path) == [Run(0, 1, 2, 1)]


def test_nothing_is_in_an_empty_file(tmp_path: Path) -> None:
    assert runs([], [[1]], tmp_path) == []
    assert runs([1], [[]], tmp_path) == []


@settings(max_examples=100, deadline=None)
@given(new=letters, sources=st.lists(letters, max_size=3))
def test_every_block_that_another_has_is_found_where_it_is(
    new: list[int], sources: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = runs(new, sources, tmp_path_factory.mktemp("blocks"))
    covered = set()
    for run in found:
        theirs = sources[run.source][run.origin : run.origin + run.count]
        assert new[run.block : run.block + run.count] == theirs
        covered |= set(range(run.block, run.block + run.count))
    known = {letter for source in sources for letter in source} - {0}
    assert covered == {place for place, letter in enumerate(new) if letter in known}
    assert [run.block for run in found] == sorted(run.block for run in found)


@settings(max_examples=50, deadline=None)
@given(pieces=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 70)), max_size=8))
def test_holes_have_the_digests_of_zeros(
    pieces: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = b"".join(bytes([letter]) * BLOCK * count for letter, count in pieces) + b"tail"
    path = tmp_path_factory.mktemp("sparse") / "file"
    with path.open("wb") as file:
        for letter, count in pieces:
            data = bytes([letter]) * BLOCK * count
            file.write(data) if letter else file.seek(len(data), os.SEEK_CUR)
        file.write(b"tail")
    out = io.BytesIO()
    with path.open("rb") as file:
        fingerprints.fingerprint(file.fileno(), out)
    starts = range(0, len(whole) - 4, BLOCK)
    assert out.getvalue() == b"".join(
        sha256(whole[at : at + BLOCK]).digest()[:DIGEST] for at in starts
    )


# --- the file system's part ---------------------------------------------------------------


class FakeKernel:
    """Stands in for FIDEDUPERANGE: compares, and notes what it would have shared."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.shared = 0
        self.calls: list[int] = []
        self.most = most

    def __call__(self, source: int, origin: int, target: int, offset: int, size: int) -> int:
        self.calls.append(size)
        size = min(size, self.most)
        if os.pread(source, size, origin) != os.pread(target, size, offset):
            return 0
        self.shared += size
        return size


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def disk(path: Path, found: Letters) -> Disk:
    path.write_bytes(content(found))
    return Disk(b3sum.digest(path.read_bytes()), path)


def share(tmp_path: Path, new: Letters, *others: Letters) -> int:
    made = [disk(tmp_path / f"other{number}", other) for number, other in enumerate(others)]
    return dedupe.share(disk(tmp_path / "new", new), made, str(tmp_path))


def test_windows_cover_the_whole_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    monkeypatch.setattr(dedupe, "_dedupe", kernel)
    monkeypatch.setattr(dedupe, "WINDOW", 3)
    new = [9, 1, 2, 3, 4, 5, 9, 6, 7, 8]
    assert share(tmp_path, new, [1, 2, 3, 4, 5, 6], [8, 7]) == 8 * BLOCK
    assert kernel.shared == 8 * BLOCK


def test_a_call_that_does_a_part_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel(most=2 * BLOCK)
    monkeypatch.setattr(dedupe, "_dedupe", kernel)
    assert share(tmp_path, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == 5 * BLOCK
    assert kernel.calls == [5 * BLOCK, 3 * BLOCK, BLOCK]


def test_wrong_digests_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    monkeypatch.setattr(dedupe, "_dedupe", kernel)
    share(tmp_path, [1, 2], [3, 4])
    # The cache says of the other disk what is not so.
    mine, theirs = (tmp_path / name for name in ("new", "other0"))
    (cache,) = (tmp_path / "cache/poclab/blocks").iterdir()
    hexes = [b3sum.digest(path.read_bytes()).partition(":")[2] for path in (mine, theirs)]
    (cache / hexes[1]).write_bytes((cache / hexes[0]).read_bytes())
    assert share(tmp_path, [1, 2], [3, 4]) == 0
    assert kernel.calls
    assert mine.read_bytes() == content([1, 2])


def test_a_digest_file_cut_short_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedupe, "_dedupe", FakeKernel())
    assert share(tmp_path, [1, 2], [1, 2, 3]) == 2 * BLOCK
    (cache,) = (tmp_path / "cache/poclab/blocks").iterdir()
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-4])
    assert share(tmp_path, [1, 2], [1, 2, 3]) == 2 * BLOCK
    assert all(path.stat().st_size % DIGEST == 0 for path in cache.iterdir())


def test_a_refusal_of_the_kernel_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel()

    def once(source: int, origin: int, target: int, offset: int, size: int) -> int:
        if offset == 0:
            raise OSError(22, "Invalid argument")
        return kernel(source, origin, target, offset, size)

    monkeypatch.setattr(dedupe, "_dedupe", once)
    assert share(tmp_path, [1, 9, 2], [1, 2]) == BLOCK


def test_disks_that_are_gone_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "_dedupe", FakeKernel())
    share(tmp_path, [1], [1, 2])
    (cache,) = (tmp_path / "cache/poclab/blocks").iterdir()
    before = {path.name for path in cache.iterdir()}
    old = next(iter(sorted(before)))
    os.utime(cache / old, (0, 0))
    share(tmp_path, [3], [3, 4])
    assert before - {path.name for path in cache.iterdir()} == {old}


def test_a_missing_disk_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "_dedupe", FakeKernel())
    others = [Disk("sha256:" + "0" * 64, tmp_path / "gone"), disk(tmp_path / "there", [1])]
    assert dedupe.share(disk(tmp_path / "new", [1]), others, str(tmp_path)) == BLOCK


@settings(max_examples=50, deadline=None)
@given(letters=st.lists(st.integers(0, 3), max_size=30), data=st.data())
def test_a_rewritten_file_has_every_byte(
    letters: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The part that btrfs needs; ranges by reference are copied here, as ext4 has none."""
    path = tmp_path_factory.mktemp("rewrite") / "disk"
    path.write_bytes(content(letters) + b"tail")
    shared = dedupe._Shared()
    for place in range(len(letters)):
        if data.draw(st.booleans()):
            shared.add(place * BLOCK, BLOCK)

    def clone(target: int, _request: int, argument: bytes) -> None:
        source, origin, size, offset = dedupe._CLONE.unpack(argument)
        os.pwrite(target, os.pread(source, size, origin), offset)

    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(dedupe, "ioctl", clone)
        dedupe._rewrite(path, file.fileno(), shared)
    assert path.read_bytes() == content(letters) + b"tail"
    assert [entry.name for entry in path.parent.iterdir()] == ["disk"]
