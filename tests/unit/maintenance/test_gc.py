"""Which versions `gc --keep` lets go: nothing that anybody reaches, whatever there is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poclab.maintenance.gc import excess
from poclab.model.version import Origin, Ref, Version
from poclab.model.version_volumes import bases, manifest_volume
from poclab.store.manifest import encode
from poclab.store.versions import Store
from tests.support import make
from tests.support.dirpool import DirectoryPool

KINDS = ("built", "imported", "committed")
DIGESTS = [f"sha256:{number:064x}" for number in range(8)]


@dataclass(frozen=True)
class Scene:
    """Versions, and who needs which."""

    versions: tuple[Version, ...]
    used: frozenset[str]
    wanted: frozenset[Ref]
    keep: int
    precious: bool

    def excess(self) -> list[Version]:
        return excess(self.versions, self.used, self.wanted, self.keep, precious=self.precious)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    refs = draw(
        st.lists(
            st.builds(Ref, st.sampled_from("ab"), st.sampled_from("123456")),
            max_size=9,
            unique=True,
        )
    )
    versions = tuple(
        make.version(
            str(ref),
            digest=draw(st.sampled_from(DIGESTS)),
            parents=draw(st.lists(st.sampled_from(DIGESTS), max_size=2, unique=True).map(tuple)),
            origin=Origin(draw(st.sampled_from(KINDS)), "x"),
            created=f"2026-01-0{draw(st.integers(1, 5))}T00:00:00Z",
            protected=draw(st.booleans()),
        )
        for ref in refs
    )
    volumes = [name for item in versions for name in bases(item)]
    return Scene(
        versions,
        used=draw(st.frozensets(st.sampled_from(volumes or ["base.x"]), max_size=3)),
        wanted=draw(st.frozensets(st.sampled_from(refs or [Ref("a", "9")]), max_size=2)),
        keep=draw(st.integers(1, 4)),
        precious=draw(st.booleans()),
    )


def needed(versions: Iterable[Version]) -> set[str]:
    return {base for item in versions for base in bases(item)}


@given(scenes())
def test_nothing_goes_that_anybody_reaches(scene: Scene) -> None:
    going = scene.excess()
    stays = [item for item in scene.versions if item not in going]
    for item in going:
        assert not item.protected
        assert item.ref not in scene.wanted
        # In use by a VM or a foreign domain, or below a version that stays.
        assert bases(item)[0] not in scene.used | needed(stays)
        assert scene.precious or item.origin.kind == "built"
        # Enough that is newer stays: other disks, not names of the same.
        newer = {
            other.digest
            for other in stays
            if other.ref.image == item.ref.image and other.created >= item.created
        }
        assert len(newer) >= scene.keep
    for image in "ab":
        there = {item.digest for item in scene.versions if item.ref.image == image}
        left = {item.digest for item in stays if item.ref.image == image}
        assert len(left) >= min(scene.keep, len(there))


@given(scenes())
def test_all_goes_that_may(scene: Scene) -> None:
    going = scene.excess()
    stays = [item for item in scene.versions if item not in going]
    for item in stays:
        others = [other for other in stays if other is not item]
        same = [other for other in scene.versions if other.ref.image == item.ref.image]
        newer = {other.digest for other in same if other.created > item.created} - {item.digest}
        held = bases(item)[0] in scene.used | needed(others)
        kind = item.origin.kind == "built" or scene.precious
        free = kind and not item.protected and item.ref not in scene.wanted and not held
        assert (
            not free
            or len(newer) < scene.keep
            or any(
                # Another name of the disk may be a newer one.
                other.digest == item.digest and other.created >= item.created
                for other in same
            )
        )


@given(scenes())
def test_what_can_be_built_again_goes_first_and_a_second_look_finds_nothing(scene: Scene) -> None:
    going = scene.excess()
    order = [(item.origin.kind != "built", item.created) for item in going]
    assert order == sorted(order)
    left = tuple(item for item in scene.versions if item not in going)
    assert excess(left, scene.used, scene.wanted, scene.keep, precious=scene.precious) == []


@pytest.fixture
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.usefixtures("_own_locks")
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(scenes())
def test_after_each_removal_what_stays_is_whole(scene: Scene) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pool = DirectoryPool(Path(directory))
        for name in {*needed(scene.versions), *scene.used}:
            pool.write(name, b"disk")
        for item in scene.versions:
            pool.write(manifest_volume(item.ref), encode(item))
        store = Store(pool, "test:///default")
        going = scene.excess()
        left = [item.ref for item in scene.versions]
        for item in going:
            store.remove(item.ref, scene.used)
            left.remove(item.ref)
            for name in store.garbage(scene.used):  # the next command, if this one is killed here
                pool.delete(name)
            assert sorted(each.ref for each in store.versions()) == sorted(left)
            assert scene.used <= set(pool.names())
        stays = [item for item in scene.versions if item not in going]
        if going:
            found = {name for name in pool.names() if name.startswith("base.")}
            assert found == needed(stays) | scene.used


def test_names_of_one_disk_count_as_one() -> None:
    first = make.version("shop:v1", created="2026-01-01T00:00:00Z")
    names = [
        make.version(f"shop:{tag}", digest=DIGESTS[0], created="2026-01-02T00:00:00Z")
        for tag in ("v2", "latest", "stable")
    ]
    assert excess([first, *names], (), (), 2) == []
    assert excess([first, *names], (), (), 1) == [first]
