"""Marks: their manifests, which of them count, and what they name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core.errors import PoclabError, UsageError
from poclab.labs.mark import check_mark, made_for
from poclab.model.version import Ref
from poclab.model.version_volumes import manifest_volume
from poclab.store.manifest import encode as encode_version
from poclab.store.marks import Mark, Marked, Marks, Pending, decode, encode, mark_volume, place
from poclab.store.sealed import seal
from tests.support import make, strategies

OVERLAYS = st.just("overlay.acme.vm1.00000001.qcow2")
NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,12}", fullmatch=True)
REFS = st.builds(Ref, NAMES, TAGS)
MARKS = st.builds(
    Mark,
    lab=NAMES,
    name=TAGS,
    created=st.just("2026-01-01T00:00:00Z"),
    by=strategies.texts,
    message=strategies.texts,
    vms=st.lists(st.builds(Marked, NAMES, REFS, strategies.digests), max_size=5).map(tuple),
    pending=st.lists(st.builds(Pending, NAMES, REFS, OVERLAYS), max_size=5).map(tuple),
)


class Pool:
    """Volumes in memory."""

    def __init__(self, **content: bytes) -> None:
        self.content = content

    def names(self) -> list[str]:
        return list(self.content)

    def read(self, name: str) -> bytes:
        if self.content[name] == b"unreadable":
            raise PoclabError(f"volume {name} cannot be read", why="Permission denied")
        return self.content[name]


def mark(lab: str = "acme", name: str = "start", **vms: str) -> Mark:
    refs = {vm: Ref.parse(text) for vm, text in vms.items()}
    items = tuple(Marked(vm, ref, make.digest(ref)) for vm, ref in refs.items())
    return Mark(lab, name, f"2026-01-01T00:00:0{len(vms)}Z", "ann", vms=items)


@given(MARKS)
def test_a_manifest_comes_back(one: Mark) -> None:
    assert decode(encode(one)) == one
    assert place(one.volume) == (one.lab, one.name)


@given(st.integers(min_value=0))
def test_a_manifest_cut_short_does_not_count(length: int) -> None:
    whole = encode(mark(web="shop:v1"))
    with pytest.raises(ValueError, match=r"."):
        decode(whole[: length % len(whole)])


@pytest.mark.parametrize(
    "name",
    ["mark.acme.json", "mark..start.json", "mark.A.start.json", "mark.acme..x.json", "mark.acme.x",
     "manifest.acme.start.json", "mark.acme.a b.json"],
)  # fmt: skip
def test_no_other_volume_is_a_mark(name: str) -> None:
    assert place(name) is None


def test_marks_are_those_whose_manifests_hold_and_the_others_are_named() -> None:
    late, early, zoo = mark(name="late", a="x:1", b="x:2"), mark(a="x:1"), mark("zoo", a="x:1")
    pool = Pool(
        **{item.volume: encode(item) for item in (zoo, late, early)},
        **{
            mark_volume("acme", "cut"): encode(early)[:-9],
            mark_volume("acme", "copied"): encode(early),
            mark_volume("acme", "closed"): b"unreadable",
            mark_volume("acme", "newer"): seal({"format": 99}),
            manifest_volume(Ref("acme", "start")): encode_version(make.version()),
        },
    )
    found = Marks.of(pool)
    assert found.marks == (early, late, zoo)
    faults = {item.name: (item.fault, item.newer) for item in found.unreadable}
    assert sorted(faults) == ["closed", "copied", "cut", "newer"]
    assert faults["copied"] == ("it is the manifest of acme@start", False)
    assert faults["closed"] == ("Permission denied", False)
    assert faults["newer"] == ("a newer poclab made it", True)
    assert Marks.of(pool, "zoo") == Marks((zoo,))
    assert (found.find("acme", "late"), found.find("zoo", "late")) == (late, None)
    for name, fix in (("cut", "poclab unmark acme cut, and mark"), ("newer", "use the newer")):
        with pytest.raises(PoclabError, match=f"the mark {name} of acme cannot be read") as caught:
            found.find("acme", name)
        assert caught.value.fix.startswith(fix)


def test_a_mark_names_a_version_by_name_and_digest() -> None:
    found = Marks((mark(web="shop:v1", db="shop:v2"), mark("zoo", "then", a="shop:v1")))

    def naming(name: str, **given: str) -> list[str]:
        return [str(item) for item in found.naming(make.version(name, **given))]

    assert naming("shop:v1") == ["acme@start", "zoo@then"]
    assert naming("shop:v2") == ["acme@start"]
    assert naming("shop:v3") == []
    assert naming("shop:v1", digest="sha256:" + "9" * 64) == []  # made anew
    assert naming("shop:stable", digest=make.digest(Ref("shop", "v1"))) == []  # another name


def test_a_version_made_for_a_mark_has_its_name_and_the_vms() -> None:
    record = make.record("web", image="shop:v1")
    assert str(made_for(record, "demo-start")) == "shop:demo-start-web"
    assert str(made_for(record, "demo-start", 2)) == "shop:demo-start-web-2"
    longest = "x" * 124
    assert made_for(record, longest).tag == f"{longest}-web"
    with pytest.raises(UsageError, match="too long for a mark with --commit"):
        made_for(record, longest + "x")


@pytest.mark.parametrize("text", ["", ".x", "-x", "a b", "a/b", "x" * 129, "ä"])
def test_what_cannot_name_a_mark_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no name of a mark"):
        check_mark(text)
