"""Versions: what counts as one, what is shared, and what is garbage."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core import events
from poclab.core.errors import NewerFormatError, PoclabError
from poclab.core.timestamps import now
from poclab.disks import dedupe
from poclab.model.version import Origin, Profile, Ref, Version
from poclab.model.version_volumes import base_volume, manifest_volume, packed_volume
from poclab.store.manifest import decode, encode
from poclab.store.versions import Store
from tests.support import make, strategies
from tests.support.dirpool import DirectoryPool

ORIGIN = Origin("built", "localhost/shop", "sha256:" + "1" * 64, "direct", {"rootfs": "ext4"})
V1, V2 = Ref("shop", "v1"), Ref("shop", "v2")


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def pool(tmp_path: Path) -> DirectoryPool:
    """An empty pool."""
    return DirectoryPool(tmp_path / "pool")


@pytest.fixture
def store(pool: DirectoryPool) -> Store:
    """The store of that pool."""
    return Store(pool, "test:///default")


def publish(store: Store, ref: Ref, content: bytes = b"disk", **given: Any) -> Version:
    """Publish a version of a file of this content."""
    with store.workdir() as directory:
        file = directory / "disk.qcow2"
        file.write_bytes(content)
        return store.publish(
            ref, file, virtual_size=100, profile=Profile.LINUX, origin=ORIGIN, **given
        )


def remove(store: Store, ref: Ref, *used: str) -> bool:
    """Remove a version as the use case does."""
    with store.changing():
        return store.remove(ref, frozenset(used))


def test_a_version_that_could_not_be_read_back_is_refused_before_anything_is_there(
    store: Store, pool: DirectoryPool
) -> None:
    with pytest.raises(PoclabError, match="cannot record shop:v1"):
        publish(store, V1, user="x" * 300)
    assert list(pool.root.iterdir()) == []
    version = publish(store, V1)
    assert store.versions() == [version]


# --- manifests ----------------------------------------------------------------------------


texts = strategies.texts
kinds = st.sampled_from(["built", "imported", "committed"])


@given(
    strategies.refs,
    strategies.digests,
    st.sampled_from(Profile),
    st.builds(Origin, kinds, texts, texts, texts, st.dictionaries(texts, texts, max_size=3)),
    st.dictionaries(texts, texts, max_size=3),
    st.lists(strategies.digests, max_size=3).map(tuple),
)
def test_a_manifest_comes_back(
    ref: Ref,
    digest: str,
    profile: Profile,
    origin: Origin,
    labels: dict[str, str],
    parents: tuple[str, ...],
) -> None:
    version = replace(
        make.version(str(ref), digest=digest, profile=profile, origin=origin, labels=labels),
        user="demo",
        parents=parents,
        protected=bool(parents),
    )
    assert decode(encode(version)) == version


def test_a_manifest_cut_anywhere_does_not_count() -> None:
    data = encode(make.version())
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r".+"):
            decode(data[:length])


def test_a_manifest_with_any_byte_changed_does_not_count() -> None:
    version = make.version()
    data = encode(version)
    for index in range(len(data)):
        for flip in (1, 0x20, 0x80):
            changed = bytearray(data)
            changed[index] ^= flip
            try:
                found = decode(bytes(changed))
            except ValueError:
                continue
            assert found == version  # blanks between tokens say nothing


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"42",
        b'"text"',
        b"{}",
        b'{"checksum": null}',
        b"\0" * 100,
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": 1, "checksum": "sha256:00"}',
    ],
    ids=range(12),
)
def test_what_is_no_manifest_at_all_does_not_count(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(data)


def sealed(**change: Any) -> bytes:
    """A manifest with other content, whose checksum holds."""
    from poclab.store.sealed import _checksum

    body = json.loads(encode(make.version()))
    del body["checksum"]
    for key, value in change.items():
        if value is None:
            body.pop(key, None)
        else:
            body[key] = value
    return json.dumps({**body, "checksum": _checksum(body)}).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"digest": None},
        {"ref": None},
        {"profile": None},
        {"profile": "amiga"},
        {"origin": None},
        {"origin": "text"},
        {"origin": {"kind": "built"}},
        {"more": 1},
        {"format": None},
    ],
    ids=str,
)
def test_a_sealed_manifest_of_other_content_does_not_count(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        decode(sealed(**change))
    assert not isinstance(caught.value, NewerFormatError)


def test_a_newer_format_is_told_apart_only_when_it_is_whole() -> None:
    with pytest.raises(NewerFormatError):
        decode(sealed(format=2))
    with pytest.raises(ValueError, match="checksum") as caught:
        decode(sealed(format=2).replace(b"linux", b"linus"))
    assert not isinstance(caught.value, NewerFormatError)


def test_the_time_is_rfc_3339_in_utc() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())


@given(strategies.refs, strategies.refs)
def test_every_version_has_a_volume_of_its_own(one: Ref, two: Ref) -> None:
    assert (manifest_volume(one) == manifest_volume(two)) == (one == two)


# --- publishing and reading ------------------------------------------------------------------


def test_a_published_version_can_be_had(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1, labels={"a": "b"}, user="demo")
    assert store.get(V1) == version
    assert store.has(V1)
    assert store.versions() == [version]
    assert (version.size, version.virtual_size, version.user) == (4, 100, "demo")
    assert pool.names() == [base_volume(version.digest), manifest_volume(V1)]
    assert pool.read(base_volume(version.digest)) == b"disk"


def test_equal_disks_are_stored_once(store: Store, pool: DirectoryPool) -> None:
    publish(store, V1)
    publish(store, V2)
    assert [name.split(".")[0] for name in pool.names()] == ["base", "manifest", "manifest"]


def test_a_version_is_never_published_twice(store: Store, pool: DirectoryPool) -> None:
    publish(store, V1)
    before = pool.names()
    with pytest.raises(PoclabError, match="shop:v1 exists already") as caught:
        publish(store, V1, b"another disk")
    assert "built" in caught.value.why
    assert "poclab image rm shop:v1" in caught.value.fix
    assert pool.names() == before


def test_a_lone_base_may_be_cut_short_and_is_replaced(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1, b"a whole disk")
    pool.delete(manifest_volume(V1))
    pool.write(base_volume(version.digest), b"a who")
    publish(store, V1, b"a whole disk")
    assert pool.read(base_volume(version.digest)) == b"a whole disk"


def test_a_version_without_its_base_is_none_and_can_be_published_again(
    store: Store, pool: DirectoryPool
) -> None:
    version = publish(store, V1)
    pool.delete(base_volume(version.digest))
    assert not store.has(V1)
    assert store.versions() == []
    publish(store, V1)
    assert pool.read(base_volume(version.digest)) == b"disk"


def test_a_damaged_manifest_can_be_published_over(store: Store, pool: DirectoryPool) -> None:
    publish(store, V1)
    pool.write(manifest_volume(V1), b"{")
    assert not store.has(V1)
    publish(store, V1, b"again")
    assert store.get(V1).size == 5


def test_a_newer_programs_version_is_not_published_over(store: Store, pool: DirectoryPool) -> None:
    pool.write(manifest_volume(V1), sealed(format=2))
    with pytest.raises(PoclabError, match="exists already") as caught:
        publish(store, V1)
    assert "newer poclab" in caught.value.why
    assert pool.read(manifest_volume(V1)) == sealed(format=2)


def test_a_manifest_under_another_name_does_not_count(store: Store, pool: DirectoryPool) -> None:
    publish(store, V1)
    pool.write(manifest_volume(V2), pool.read(manifest_volume(V1)))
    pool.write(base_volume("sha256:" + "0" * 64), b"theirs")
    assert not store.has(V2)
    # It was not cut short: which base it means cannot be known, so none goes, nor does it.
    assert store.garbage() == []
    with pytest.raises(PoclabError, match="shop:v2 is damaged"):
        publish(store, V2)
    with pytest.raises(PoclabError, match=r"vol-delete --pool poclab manifest\.shop\.v2\.json"):
        remove(store, V2)


def test_versions_are_listed_by_image_and_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for second, ref in enumerate([Ref("web", "a"), V2, V1, Ref("web", "1.10")]):
        monkeypatch.setattr(
            "poclab.store.versions.now", lambda s=second: f"2026-01-01T00:00:{s:02d}Z"
        )
        publish(store, ref, str(ref).encode())
    assert [str(item.ref) for item in store.versions()] == [
        "shop:v2", "shop:v1", "web:a", "web:1.10",
    ]  # fmt: skip


# --- versions on versions ------------------------------------------------------------------------


def test_what_a_version_is_layered_on_stays_when_its_name_goes(
    store: Store, pool: DirectoryPool
) -> None:
    below = publish(store, V1, b"below")
    above = publish(store, V2, b"above", parents=(below.digest,))
    assert store.remove(V1) is False
    assert store.garbage() == []
    assert store.versions() == [above]
    assert store.remove(V2) is True
    assert store.garbage() == [base_volume(below.digest)]


def test_a_version_whose_parent_is_lost_does_not_count(store: Store, pool: DirectoryPool) -> None:
    below = publish(store, V1, b"below")
    publish(store, V2, b"above", parents=(below.digest,))
    pool.delete(base_volume(below.digest))
    assert not store.has(V2)
    assert store.versions() == []


def test_nothing_is_published_on_a_parent_that_is_not_there(
    store: Store, pool: DirectoryPool
) -> None:
    with pytest.raises(PoclabError, match="shop:v1 has nothing to stand on"):
        publish(store, V1, parents=("sha256:" + "0" * 64,))
    assert pool.names() == []


@pytest.mark.parametrize("failing", ["base", "manifest"])
def test_a_publish_that_stops_leaves_no_version(
    store: Store, pool: DirectoryPool, failing: str
) -> None:
    def stop(event: events.Event) -> None:
        if event.kind == "step" and event.text == failing:
            raise KeyboardInterrupt

    with events.listening(stop), pytest.raises(KeyboardInterrupt):
        publish(store, V1)
    assert store.versions() == []
    for name in store.garbage():
        pool.delete(name)
    assert pool.names() == []


# --- what is missing -----------------------------------------------------------------------------


def test_a_missing_tag_names_the_ones_there_are(store: Store) -> None:
    publish(store, V1, b"1")
    publish(store, V2, b"2")
    with pytest.raises(PoclabError) as caught:
        store.get(Ref("shop", "v3"))
    assert caught.value.lines() == [
        "shop:v3 is not there",
        "why: shop has v1, v2",
        "fix: choose one of these, or `poclab image build shop --tag v3`",
    ]


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("shp", "there is no image shp; did you mean shop?"),
        ("zzzzzz", "there is no image zzzzzz; there are shop, web"),
    ],
)
def test_a_missing_image_names_its_neighbour_or_all(store: Store, image: str, why: str) -> None:
    publish(store, V1)
    publish(store, Ref("web", "v1"), b"web")
    with pytest.raises(PoclabError) as caught:
        store.get(Ref(image, "v1"))
    assert caught.value.why == why


def test_an_empty_store_says_how_to_fill_it(store: Store) -> None:
    with pytest.raises(PoclabError) as caught:
        store.get(V1)
    assert caught.value.why == "there is no image shop"
    assert "poclab image import" in caught.value.fix


# --- tags ---------------------------------------------------------------------------------------


def test_a_second_name_shares_the_disk(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1)
    stable = store.tag(V1, Ref("shop", "stable"))
    assert asdict(stable) == asdict(version) | {"ref": {"image": "shop", "tag": "stable"}}
    assert store.get(Ref("shop", "stable")) == stable
    assert len(pool.names()) == 3


def test_a_tag_given_twice_is_fine_and_never_moved(store: Store) -> None:
    publish(store, V1, b"1")
    publish(store, V2, b"2")
    stable = Ref("shop", "stable")
    first = store.tag(V1, stable)
    assert store.tag(V1, stable) == first
    with pytest.raises(PoclabError, match="shop:stable exists already"):
        store.tag(V2, stable)
    assert store.get(stable) == first


def test_a_tag_of_nothing_is_refused(store: Store, pool: DirectoryPool) -> None:
    with pytest.raises(PoclabError, match="shop:v1 is not there"):
        store.tag(V1, V2)
    assert pool.names() == []


# --- removal and garbage --------------------------------------------------------------------------


def test_the_last_version_takes_the_disk_with_it(store: Store, pool: DirectoryPool) -> None:
    publish(store, V1)
    store.tag(V1, V2)
    assert remove(store, V1) is False
    assert store.get(V2)
    assert remove(store, V2) is True
    assert pool.names() == []


def test_a_disk_that_a_vm_stands_on_stays(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1)
    assert remove(store, V1, base_volume(version.digest)) is False
    assert pool.names() == [base_volume(version.digest)]
    assert store.garbage(frozenset({base_volume(version.digest)})) == []
    assert store.garbage() == pool.names()


def test_what_is_not_there_cannot_be_removed(store: Store) -> None:
    with pytest.raises(PoclabError, match="shop:v1 is not there"):
        remove(store, V1)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"checksum": "sha256:00"}'])
def test_garbage_is_what_interrupted_commands_leave(
    store: Store, pool: DirectoryPool, damage: bytes
) -> None:
    version = publish(store, V1)
    lone = base_volume("sha256:" + "0" * 64)
    pool.write(lone, b"cut sho")
    pool.write(manifest_volume(V2), damage)
    for name in ("overlay.acme.vm1.0.qcow2", "data.acme.vm1.x.qcow2", "poclab.json", "my.iso"):
        pool.write(name, b"")
    assert sorted(store.garbage()) == sorted([lone, manifest_volume(V2)])
    assert base_volume(version.digest) not in store.garbage()


def test_nothing_is_garbage_when_a_newer_program_may_need_it(
    store: Store, pool: DirectoryPool
) -> None:
    publish(store, V1)
    pool.write(base_volume("sha256:" + "0" * 64), b"theirs")
    pool.write(manifest_volume(V2), sealed(format=2, ref="shop:v2"))
    assert store.garbage() == []
    assert remove(store, V1) is False
    assert len(pool.names()) == 3


class Unreadable(DirectoryPool):
    """A pool in which one volume cannot be read just now."""

    broken = ""

    def read(self, name: str) -> bytes:
        if name == self.broken:
            raise PoclabError(f"volume {name} cannot be read", why="Input/output error")
        return super().read(name)


def test_nothing_is_deleted_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    pool = Unreadable(tmp_path / "pool")
    store = Store(pool, "test:///default")
    publish(store, V1)
    store.tag(V1, V2)
    before = pool.names()
    pool.broken = manifest_volume(V1)
    pool.write(base_volume("sha256:" + "0" * 64), b"theirs")
    assert store.garbage() == []
    assert [str(item.ref) for item in store.versions()] == ["shop:v2"]
    assert remove(store, V2) is False
    assert set(before) - set(pool.names()) == {manifest_volume(V2)}


def test_a_store_is_changed_by_one_at_a_time(store: Store) -> None:
    with store.reading(), pytest.raises(RuntimeError, match="holds the lock"):
        publish(store, V1)
    with store.changing(), pytest.raises(RuntimeError, match="holds the lock"):
        store.tag(V1, V2)


# --- packed bases -------------------------------------------------------------------------


def pack(pool: DirectoryPool, version: Version, *, keep: bool = False) -> str:
    """Put a file in a base's place that stands for the packed one; gives the plain one's name."""
    base = base_volume(version.digest)
    pool.write(packed_volume(base), b"packed")
    if not keep:
        pool.delete(base)
    return base


def test_a_packed_version_is_there(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1)
    pack(pool, version)
    assert store.versions() == [version]
    assert store.get(V1) == version
    assert store.garbage() == []
    with pytest.raises(PoclabError, match="exists already"):
        publish(store, V1)


def test_a_version_on_a_packed_base_can_be_published(store: Store, pool: DirectoryPool) -> None:
    below = publish(store, V1)
    pack(pool, below)
    version = publish(store, V2, b"other", parents=(below.digest,))
    assert store.versions() == [below, version]
    assert store.garbage() == []


def test_of_two_forms_the_packed_one_is_garbage(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1)
    base = pack(pool, version, keep=True)
    assert store.garbage() == [packed_volume(base)]
    assert store.garbage(frozenset([base])) == [packed_volume(base)]


def test_a_packed_base_of_no_version_is_garbage(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1)
    base = pack(pool, version)
    pool.delete(manifest_volume(V1))
    assert store.garbage() == [packed_volume(base)]
    assert store.garbage(frozenset([base])) == []


def test_a_packed_version_is_removed_whole(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1)
    pack(pool, version)
    with store.changing():
        assert store.remove(V1)
    assert pool.names() == []


def test_the_same_disk_published_again_is_plain(store: Store, pool: DirectoryPool) -> None:
    base = pack(pool, publish(store, V1))
    publish(store, V2)
    assert base in pool.names()
    assert packed_volume(base) not in pool.names()


def test_of_a_newer_manifest_no_packed_base_is_garbage(store: Store, pool: DirectoryPool) -> None:
    version = publish(store, V1)
    pack(pool, version)
    pool.write(manifest_volume(V1), sealed(format=2))
    assert store.garbage() == []
    assert store.holds_all()


# --- shared blocks ------------------------------------------------------------------------


def test_what_a_new_base_is_compared_with(
    store: Store, pool: DirectoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same image first, the latest first; a base that two versions have once."""
    seen: list[list[str]] = []

    def share(disk: dedupe.Disk, others: list[dedupe.Disk], directory: str) -> int:
        assert directory == pool.directory
        assert disk.path.read_bytes() == b"new"
        seen.append([other.path.read_text() for other in others])
        return 5 * 1024**2

    monkeypatch.setattr(dedupe, "possible", lambda _directory: True)
    monkeypatch.setattr(dedupe, "share", lambda *_given: 0)
    times = iter(range(10))
    monkeypatch.setattr("poclab.store.versions.now", lambda: f"2026-01-01T00:00:0{next(times)}Z")
    for ref, content in ((V1, b"1"), (Ref("web", "v1"), b"w"), (V2, b"2")):
        publish(store, ref, content)
    store.tag(V2, Ref("shop", "same"))
    monkeypatch.setattr(dedupe, "share", share)
    told: list[str] = []
    with events.listening(lambda event: told.append(event.text) if event.kind == "note" else None):
        publish(store, Ref("shop", "v3"), b"new")
    assert seen == [["2", "1", "w"]]
    assert told == ["shop:v3 shares 5 MiB with other versions"]


def test_a_failure_to_share_fails_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def share(*_given: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dedupe, "possible", lambda _directory: True)
    monkeypatch.setattr(dedupe, "share", share)
    publish(store, V1, b"1")
    publish(store, V2, b"2")
    assert [version.ref for version in store.versions()] == [V1, V2]


def test_nothing_is_shared_where_files_are_staged_elsewhere(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedupe, "possible", lambda _directory: pytest.fail("asked"))
    for ref in (V1, V2):
        file = tmp_path / str(ref)
        file.write_text(str(ref))
        store.publish(ref, file, virtual_size=1, profile=Profile.LINUX, origin=ORIGIN)
    assert len(store.versions()) == 2
