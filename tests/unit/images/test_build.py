"""The use case of `image build`, with a builder and a podman of the tests' own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from poclab.builders.base import BuildRequest, Built, common_inputs
from poclab.core import events, locks
from poclab.core.errors import PoclabError, UsageError
from poclab.core.process import using
from poclab.images import build
from poclab.images.build import build_image, new_log, verified_size
from poclab.images.build_cache import INPUTS, SECONDS
from poclab.model.version import Origin, Profile, Ref, Version
from poclab.schema.image import ImageFile
from poclab.store.versions import Store
from tests.hostile import labels
from tests.support.dirpool import DirectoryPool
from tests.support.fake_podman import FakePodman

URI = "test:///default"
REF = Ref("web", "v1")


def make_disk(path: Path, *, gpt: bool = True) -> None:
    """Make a qcow2 disk of 4 MiB."""
    raw = path.with_suffix(".raw")
    with raw.open("xb") as file:
        file.truncate(4 << 20)
    if gpt:
        argv = ["/usr/sbin/sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(raw)]
        subprocess.run(argv, input="label: gpt\n", text=True, check=True, timeout=30)
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    subprocess.run(argv, check=True, timeout=60)
    raw.unlink()


class FakeBuilder:
    """Makes a small disk, or fails."""

    def __init__(self) -> None:
        self.name = "fake"
        self.requests: list[BuildRequest] = []
        self.fail: Callable[[], None] = lambda: None
        self.gpt = True
        self.more: dict[str, str] = {}

    def check(self, request: BuildRequest) -> None:
        pass

    def inputs(self, request: BuildRequest) -> dict[str, str]:
        return common_inputs(request) | self.more

    def build(self, request: BuildRequest) -> Built:
        self.requests.append(request)
        self.fail()
        make_disk(request.workdir / "disk.qcow2", gpt=self.gpt)
        return Built(request.workdir / "disk.qcow2", {"kernel": "6.1"})


@dataclass
class World:
    pool: DirectoryPool
    store: Store
    podman: FakePodman
    builder: FakeBuilder
    image: ImageFile
    logs: Path
    asked: list[str]

    def build(self, tag: str = "v1", **options: object) -> Version:
        return build_image(self.store, self.image, tag, uri=URI, **options)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    directory = tmp_path / "web"
    directory.mkdir()
    (directory / "Containerfile").write_text("FROM scratch\n")
    image = ImageFile(
        "web",
        directory,
        containerfile=directory / "Containerfile",
        build_args={"VERSION": "{tag}", "COLOUR": "red"},
        user="admin",
    )
    builder = FakeBuilder()
    asked: list[str] = []

    def choose(name: str, *_args: object, **_named: object) -> tuple[FakeBuilder, str]:
        asked.append(name)
        return builder, "of the tests"

    monkeypatch.setattr(build, "builder_for", choose)
    pool = DirectoryPool(tmp_path / "pool")
    with using(FakePodman()) as podman:
        assert isinstance(podman, FakePodman)
        podman.add("localhost/poclab/web:v1", {"org.opencontainers.image.title": "Web"})
        podman.add("localhost/poclab/web:v2")
        logs = tmp_path / "XDG_STATE_HOME/poclab/logs"
        yield World(pool, Store(pool, URI), podman, builder, image, logs, asked)


def nothing_left(world: World) -> bool:
    return list(world.pool.root.iterdir()) == []


def test_a_version_is_built(world: World) -> None:
    notes: list[str] = []
    with events.listening(lambda e: notes.append(e.text) if e.kind == "note" else None):
        version = world.build(build_args={"COLOUR": "blue"})
    assert world.store.get(REF) == version
    assert version.virtual_size == 4 << 20
    assert version.user == "admin"
    assert version.labels.keys() == {"org.opencontainers.image.title", SECONDS}
    assert 0 <= float(version.labels[SECONDS]) < 60
    origin = version.origin
    assert (origin.kind, origin.builder) == ("built", "fake")
    assert origin.source == "localhost/poclab/web:v1"
    assert origin.digest == world.podman.digest("localhost/poclab/web:v1")
    assert origin.inputs["kernel"] == "6.1"
    assert origin.inputs["build_args"] == "COLOUR=blue VERSION=v1"
    call = next(call for call in world.podman.calls if call[1] == "build")
    assert "COLOUR=blue" in call
    assert "VERSION=v1" in call
    assert notes[0] == "disk builder: fake (of the tests)"
    assert notes[-1].startswith("built web:v1, ")
    assert not list(world.pool.root.glob("staging.*"))


@pytest.mark.parametrize("make", [labels.many, labels.long, labels.odd])
def test_labels_of_a_stranger_never_make_a_version_that_cannot_be_read(
    world: World, make: Callable[[], dict[str, str]]
) -> None:
    """A manifest that poclab cannot read back would stop `gc`."""
    given = make()
    world.podman.add("localhost/poclab/web:v1", given)
    notes: list[str] = []
    with events.listening(lambda e: notes.append(e.text) if e.kind == "note" else None):
        version = world.build()
    assert world.store.get(REF) == world.store.find(REF)
    assert not world.store.holds_all()
    kept = {key: text for key, text in version.labels.items() if key.startswith("org.")}
    assert kept["org.opencontainers.image.title"] == "Web"
    assert len(kept) == min(len(given), build.LABELS)
    assert all(len(text) <= build.LABEL_LENGTH for pair in kept.items() for text in pair)
    dropped = len(given) - len(kept)
    said = [note for note in notes if "label" in note]
    assert said == (
        [] if not dropped else [next(n for n in notes if f"left out: {dropped:,};" in n)]
    )


@pytest.mark.parametrize("tag", ["", "-rf", "a/b", "x" * 129])
def test_bad_tags(world: World, tag: str) -> None:
    with pytest.raises(UsageError):
        world.build(tag)
    assert nothing_left(world)
    assert world.podman.calls == []


# --- what was built before --------------------------------------------------------------


def notes_of(world: World, tag: str = "v1") -> list[str]:
    seen: list[str] = []
    with events.listening(lambda e: seen.append(e.text) if e.kind == "note" else None):
        world.build(tag)
    return seen


def rename(world: World, tag: str, image_id: str) -> None:
    """Have the container build of a tag give another image."""
    entry = world.podman.images[image_id]
    world.podman.images[f"localhost/poclab/web:{tag}"] = entry


def test_the_same_again_is_already_built(world: World) -> None:
    first = world.build()
    (log,) = world.logs.iterdir()
    log = log.rename(world.logs / "build-web.v1-earlier.log")
    assert notes_of(world) == ["web:v1 is already built"]
    assert world.build() == first
    assert len(world.builder.requests) == 1
    assert list(world.logs.iterdir()) == [log]


def test_the_same_under_another_tag_has_the_same_disk(world: World) -> None:
    first = world.build()
    rename(world, "v2", first.origin.inputs["image_id"])
    assert notes_of(world, "v2") == ["web:v2 is already built: it is the same as web:v1"]
    second = world.store.get(Ref("web", "v2"))
    assert second == replace(first, ref=Ref("web", "v2"))
    assert len(world.builder.requests) == 1


def change_image(world: World) -> None:
    rename(world, "v1", world.podman.add("other"))


def change_container(world: World) -> None:
    image_id = world.podman.images["localhost/poclab/web:v1"][0]
    world.podman.images["quay.io/x/y:1"] = world.podman.images[image_id]
    world.image = replace(world.image, containerfile=None, container="quay.io/x/y:1")


def change_builder(world: World) -> None:
    world.builder.name = "other"


def define(**more: object) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.image = replace(world.image, **more)  # type: ignore[arg-type]

    return change


def inside(name: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.builder.more = {name: "sha256:" + "2" * 64}

    return change


CHANGES: dict[str, Callable[[World], None]] = {
    "image_id": change_image,
    "container": change_container,
    "builder": change_builder,
    "rootfs": define(rootfs="xfs"),
    "disk_size": define(disk=1 << 30),
    "kernel_args": define(kernel_args=("quiet",)),
    "builder_args": define(builder_args=("--seed=1",)),
    "user": define(user="root"),
    "profile": define(profile=Profile.LEGACY),
    "format": inside("format"),
    "type": inside("type"),
    "builder_digest": inside("builder_digest"),
    "builder_version": inside("builder_version"),
    "blueprint": inside("blueprint"),
    "e2fsprogs": inside("e2fsprogs"),
    "loader": inside("loader"),
}


def test_every_input_is_tried() -> None:
    assert CHANGES.keys() == INPUTS.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_other_inputs_are_another_version(world: World, name: str) -> None:
    first = world.build()
    CHANGES[name](world)
    with pytest.raises(PoclabError, match="exists already, built from other inputs") as caught:
        world.build()
    assert f"differs in {INPUTS[name]}" in caught.value.why
    assert "another tag" in caught.value.fix
    assert world.store.versions() == [first]
    # The name of the container image is the version's, whatever was built meanwhile.
    named = ["podman", "tag", first.origin.inputs["image_id"], "localhost/poclab/web:v1"]
    assert (named in world.podman.calls) == (world.image.container is None)
    world.build("v2")
    assert len(world.builder.requests) == 2


def test_a_short_difference_is_shown(world: World) -> None:
    world.build()
    world.image = replace(world.image, kernel_args=("quiet",))
    with pytest.raises(PoclabError) as caught:
        world.build()
    assert "differs in kernel_args (none -> quiet)" in caught.value.why


def test_a_builder_that_is_gone_says_nothing_against_a_version(world: World) -> None:
    world.builder.more = {"builder_digest": "sha256:1"}
    first = world.build()
    world.builder.more = {}
    assert world.build() == first


def test_no_cache_builds_anew(world: World) -> None:
    first = world.build()
    before = list(world.podman.calls)
    with pytest.raises(PoclabError, match="exists already") as caught:
        world.build(no_cache=True)
    assert "never changes" in caught.value.why
    assert world.podman.calls == before
    rename(world, "v2", first.origin.inputs["image_id"])
    world.build("v2", no_cache=True)
    assert len(world.builder.requests) == 2
    (call,) = [call for call in world.podman.calls[len(before) :] if call[1] == "build"]
    assert "--no-cache" in call


def test_a_version_that_was_not_built_is_refused_at_once(world: World, tmp_path: Path) -> None:
    make_disk(tmp_path / "disk.qcow2")
    world.store.publish(
        REF,
        tmp_path / "disk.qcow2",
        virtual_size=4 << 20,
        profile=Profile.LINUX,
        origin=Origin("imported", "disk.qcow2", "sha256:0", "", {}),
    )
    with pytest.raises(PoclabError, match="exists already"):
        world.build()
    assert world.podman.calls == []


def test_the_last_disk_is_the_estimate_for_the_next(world: World) -> None:
    world.build()
    notes = notes_of(world, "v2")
    assert notes[0].startswith("disk builder: fake (of the tests); the last disk took 0.")
    assert world.builder.requests[0].expected is None
    assert world.builder.requests[1].expected == float(world.store.get(REF).labels[SECONDS])


def test_auto_stays_with_the_builder_of_the_same_container_image(world: World) -> None:
    world.builder.name = "direct"
    first = world.build()
    world.image = replace(world.image, kernel_args=("quiet",))
    rename(world, "v2", first.origin.inputs["image_id"])
    assert "as for web:v1, which is of the same container image" in notes_of(world, "v2")[0]
    assert world.asked == ["auto", "direct"]
    world.podman.add("localhost/poclab/web:v3")
    world.build("v3")
    assert world.asked == ["auto", "direct", "auto"]


@pytest.mark.parametrize("tag", ["v1", "v2"])
def test_of_two_builds_at_once_one_takes_the_others_result(world: World, tag: str) -> None:
    rename(world, "v2", world.podman.images["localhost/poclab/web:v1"][0])
    children: list[int] = []

    def second() -> None:
        # Another process; the locks of this one must not count as its own.
        if pid := os.fork():
            children.append(pid)
            return
        locks._held.clear()
        code = 1
        try:
            world.build(tag)
            # The disk was the first one's: there is only the request from before the fork.
            code = 0 if len(world.builder.requests) == 1 else 2
        finally:
            os._exit(code)

    world.builder.fail = second
    first = world.build()
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert {item.digest for item in world.store.versions()} == {first.digest}


# --- failures and interruptions ----------------------------------------------------------


def test_a_failed_container_build_names_the_log(world: World) -> None:
    def fail(_argv: list[str], line: Callable[[str], None]) -> int:
        line("STEP 1/2: FROM scratch")
        line("Error: building at STEP: no such file")
        return 1

    world.podman.on_build = fail
    with pytest.raises(PoclabError) as caught:
        world.build()
    (log,) = world.logs.iterdir()
    assert str(log) in caught.value.what
    assert "Error: building at STEP" in log.read_text()
    assert nothing_left(world)


def test_a_failed_disk_build_names_the_log(world: World) -> None:
    def fail() -> None:
        raise PoclabError("the builder failed", why="because")

    world.builder.fail = fail
    with pytest.raises(PoclabError) as caught:
        world.build()
    (log,) = world.logs.iterdir()
    assert caught.value.what == f"the builder failed (log: {log})"
    assert "because" in log.read_text()
    assert nothing_left(world)


def test_a_disk_without_partition_table_is_refused(world: World) -> None:
    world.builder.gpt = False
    with pytest.raises(PoclabError, match="without a partition table"):
        world.build()
    assert nothing_left(world)


def test_verified_size_refuses_other_files(tmp_path: Path, world: World) -> None:
    text = tmp_path / "disk.qcow2"
    text.write_text("no disk" * 1000)
    with pytest.raises(PoclabError, match="not a disk"):
        verified_size(text)


def steps_of(world: World) -> list[str]:
    seen: list[str] = []
    with events.listening(lambda e: seen.append(e.text) if e.kind == "step" else None):
        world.build("v2")
    world.store.remove(Ref("web", "v2"))
    return seen


def test_interrupted_at_any_step_it_converges(world: World) -> None:
    steps = steps_of(world)
    assert len(steps) >= 4
    for number in range(len(steps)):
        count = iter(range(1000))

        def stop(event: events.Event, number: int = number, count: Iterator[int] = count) -> None:
            if event.kind == "step" and next(count) == number:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), events.listening(stop):
            world.build()
        assert not world.store.has(REF), steps[number]
        assert not list(world.pool.root.glob("staging.*"))
        # At most a base that no version has: `image build` deletes these before it begins.
        assert world.pool.names() == world.store.garbage()
        for name in world.store.garbage():
            world.pool.delete(name)
        version = world.build()
        assert world.store.versions() == [version]
        world.store.remove(REF)
        assert nothing_left(world)


def test_a_killed_builds_workdir_is_swept(world: World) -> None:
    (world.pool.root / "staging.dead").mkdir()
    (world.pool.root / "staging.dead/disk.raw").write_bytes(b"x")
    world.build()
    assert not (world.pool.root / "staging.dead").exists()


def test_a_container_image_is_taken_as_it_is(world: World) -> None:
    world.image = replace(
        world.image, containerfile=None, container="quay.io/x/y:44", build_args={}
    )
    image_id = world.podman.add("quay.io/x/y:44")
    version = world.build()
    assert version.origin.source == "quay.io/x/y:44"
    assert world.builder.requests[0].image_id == image_id
    assert not [call for call in world.podman.calls if call[1] in ("build", "pull", "tag")]
    with pytest.raises(UsageError, match="no build arguments"):
        world.build("v2", build_args={"A": "b"})


def test_an_image_that_cannot_be_pulled(world: World) -> None:
    world.image = replace(world.image, containerfile=None, container="quay.io/x/y:45")
    with pytest.raises(PoclabError, match="cannot be pulled") as caught:
        world.build()
    assert caught.value.why == "Error: no such host"
    assert "podman load" in caught.value.fix
    assert nothing_left(world)


def test_an_image_by_digest_gets_a_name(world: World) -> None:
    reference = "quay.io/x/y@sha256:" + "e" * 64
    image_id = world.podman.add(reference)
    world.image = replace(world.image, containerfile=None, container=reference)
    world.build()
    assert world.builder.requests[0].image == "localhost/poclab/web:v1"
    assert ["podman", "tag", image_id, "localhost/poclab/web:v1"] in world.podman.calls


def test_the_ten_newest_logs_stay(world: World) -> None:
    for number in range(14):
        log = new_log(Ref("web", f"v{number}"), "doing")
        os.utime(log, (number, number))
    new_log(Ref("web-api", "v1"), "doing")
    left = sorted(path.name.split("-2")[0] for path in world.logs.iterdir())
    assert "build-web-api.v1" in left
    assert len(left) == build.LOGS_KEPT + 1
    assert "build-web.v3" not in left
    assert "build-web.v13" in left
