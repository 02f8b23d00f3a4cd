"""What `image diff` prints: pure differences, and blocks that one disk has alone."""

from __future__ import annotations

import io
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from poclab.containers.packages import File, Tree
from poclab.disks.fingerprints import BLOCK, fingerprint_stream, missing
from poclab.images.diff import DiffRow, facts, trees
from poclab.model.version import Origin
from tests.support import make

names = st.sampled_from([f"n{number}" for number in range(6)])
packages = st.dictionaries(names, st.sampled_from(["1", "2", "3"]))
entries = st.builds(
    File,
    st.sampled_from("02"),
    st.sampled_from([0o644, 0o755]),
    st.just((0, 0)),
    st.integers(0, 3),
    st.sampled_from(["a", "b"]),
)
images = st.builds(Tree, st.dictionaries(names, entries), packages)


@given(images)
def test_equal_images_do_not_differ(tree: Tree) -> None:
    assert trees(tree, tree) == []


@given(images, images)
def test_the_difference_leads_from_one_to_the_other_and_back(old: Tree, new: Tree) -> None:
    rows = trees(old, new)
    found = dict(old.packages)
    for row in rows:
        if row.kind != "package":
            continue
        assert found.pop(row.name, "") == row.old
        if row.change != "removed":
            found[row.name] = str(row.new)
    assert found == new.packages
    changed = {row.name: row for row in rows if row.kind == "file"}
    for name in old.files.keys() | new.files.keys():
        assert (name in changed) == (old.files.get(name) != new.files.get(name))
    sizes = {name: (row.old, row.new) for name, row in changed.items()}
    for name, (before, after) in sizes.items():
        assert before == (old.files[name].size if name in old.files else "")
        assert after == (new.files[name].size if name in new.files else "")
    other = {"added": "removed", "removed": "added", "changed": "changed"}
    assert trees(new, old) == [
        DiffRow(row.kind, row.name, other[row.change], row.new, row.old) for row in rows
    ]


def test_what_manifests_tell() -> None:
    old = make.version("shop:v1")
    assert facts(old, old) == []
    new = replace(old, size=old.size + 1, origin=Origin("imported", "a.raw"), parents=("sha256:1",))
    rows = {row.name: row for row in facts(old, new)}
    assert (rows["size"].old, rows["size"].new) == (old.size, old.size + 1)
    assert rows["origin"].new == "imported a.raw"
    assert (rows["parents"].change, rows["parents"].new) == ("added", "sha256:1")


def prints(blocks: list[int], sizes: list[int]) -> io.BytesIO:
    """The digests of blocks of one byte's value each, handed over in pieces of these sizes."""
    content = b"".join(bytes([value]) * BLOCK for value in blocks) + b"end"
    parts = []
    while content:
        count = sizes.pop() if sizes else len(content)
        parts.append(content[:count])
        content = content[count:]
    target = io.BytesIO()
    fingerprint_stream(parts, target, lambda _done: None)
    return target


numbers = st.lists(st.integers(0, 9), max_size=12)


@given(numbers, numbers, st.lists(st.integers(1, 3 * BLOCK), max_size=8))
def test_blocks_that_only_one_has(mine: list[int], theirs: list[int], sizes: list[int]) -> None:
    """Zeros are holes for the most part: they count for nobody."""
    found = missing(prints(mine, sizes), prints(theirs, []))
    assert found == sum(value != 0 and value not in theirs for value in mine)
