"""`image build` through real podman and the stand-ins for image-builder and bootc; the cache.

See tests/support/builder_standin/README.md for what the stand-ins keep of the contracts.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poclab.builders import osbuild, progress
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.model.version import Ref, Version
from tests.support import builds, podman
from tests.support.builder_standin import make
from tests.support.builds import GIB, Interrupter, World, from_esp, from_ext4, partitions, raw

HOST_BIN = Path(make.__file__).parent / "host_bin"
IMAGE_BUILDER = f"builder: image-builder\nbuilder_image: {make.IMAGE_BUILDER}\n"
DEBIAN = b'ID=debian\nVERSION_ID="12"\n'


@pytest.fixture(scope="module")
def standins() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.fail("these tests need root, as the builders do: sudo make test")
    with podman.working():
        make.make_image_builder()
        yield


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standins: None) -> Iterator[World]:
    for name in (osbuild.BIB_VARIABLE, osbuild.IMAGE_BUILDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    # The stand-in's steps are short.
    monkeypatch.setattr(progress, "_POLL", 0.01)
    with builds.world(tmp_path, monkeypatch) as made:
        yield made


def notes(seen: list[events.Event]) -> list[str]:
    return [event.text for event in seen if event.kind == "note"]


def in_disk(world: World, version: Version, name: str) -> str:
    """A file of the root partition, and what the boot loader's entry says."""
    disk = raw(world, version.digest)
    (esp_start, _, _), (root_start, _, _) = partitions(disk)
    entry = from_esp(disk, esp_start, "loader/entries/poclab.conf").decode()
    return from_ext4(disk, root_start, name) + entry


# --- image-builder ----------------------------------------------------------------------


def test_image_builder_in_its_container_and_what_is_built_already(world: World) -> None:
    image = world.define(IMAGE_BUILDER + "kernel_args: [marker=1]\nuser: anna\ndisk: 12GiB\n")
    version, seen = world.build(image)
    assert version.virtual_size == 12 * GIB
    inputs = version.origin.inputs
    assert (inputs["program"], inputs["program_version"]) == ("image-builder", "79")
    assert inputs["builder_digest"].startswith("sha256:")
    text = in_disk(world, version, "/etc/passwd")
    assert "anna:x:1000:" in text
    assert "marker=1" in text
    # From the progress file: the inner step's name, how far the outer one is.
    told = [event for event in seen if event.kind == "progress" and event.data["total"] == 8]
    assert "make the root file system" in [event.text for event in told]
    assert told[-1].data["done"] > told[0].data["done"]

    times = []
    for _ in range(3):
        begin = time.monotonic()
        again, seen = world.build(image)
        times.append(time.monotonic() - begin)
        assert again == version
        assert notes(seen) == [f"{image.name}:v1 is already built"]
    assert min(times) < 5, times  # nothing was built
    twin, seen = world.build(image, "v2")
    assert twin.digest == version.digest
    assert notes(seen) == [f"{image.name}:v2 is already built: it is the same as {image.name}:v1"]


def test_image_builder_of_the_host_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{HOST_BIN}:{os.environ['PATH']}")
    image = world.define("kernel_args: [marker=2]\n")
    version, seen = world.build(image)
    assert "this host has image-builder" in notes(seen)[0]
    assert version.origin.builder == "image-builder"
    assert version.origin.inputs["builder_version"] == "79"
    assert "VERSION-OF-THE-TEST" in in_disk(world, version, "/usr/share/version")
    assert not list(world.pool.root.glob("staging.*"))


def test_a_blueprint_key_that_image_builder_refuses(world: World) -> None:
    (world.directory / "blueprint.toml").write_text('[customizations]\nhostname = "web"\n')
    with pytest.raises(PoclabError, match="image-builder failed") as caught:
        world.build(world.define(IMAGE_BUILDER))
    assert "it does not support customizations.hostname" in caught.value.why
    assert "take customizations.hostname out of the blueprint" in caught.value.fix
    assert world.nothing_left()


@pytest.mark.parametrize("how", ["container", "host"])
def test_an_interrupted_image_builder_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    text = IMAGE_BUILDER
    if how == "host":
        monkeypatch.setenv("PATH", f"{HOST_BIN}:{os.environ['PATH']}")
        text = "builder: image-builder\n"
    image = world.define(text)
    pressed: list[float] = []

    def press(event: events.Event) -> None:
        # The progress file is read by a thread of its own; Ctrl-C reaches the main one.
        if event.text == "make the root file system" and not pressed:
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), events.listening(press):
        world.build(image)
    assert pressed
    assert time.monotonic() - pressed[0] < 30
    assert world.nothing_left()


def test_an_image_is_run_as_what_it_holds_whatever_it_is_called(world: World) -> None:
    text = f"builder: bootc-image-builder\nbuilder_image: {make.IMAGE_BUILDER}\n"
    seen: list[events.Event] = []
    image = world.define(text + "builder_args: [--frobnicate]\n")
    with (
        events.listening(seen.append),
        pytest.raises(PoclabError, match="image-builder failed") as caught,
    ):
        world.build(image)
    assert any("holds image-builder, not bootc-image-builder" in text for text in notes(seen))
    assert caught.value.why == "unknown flag: --frobnicate"
    assert "builder_args" in caught.value.fix
    assert world.nothing_left()


# --- bootc ------------------------------------------------------------------------------


def test_bootc_installs_an_image_of_debians_family(world: World) -> None:
    world.put("usr/lib/os-release", DEBIAN)
    text = "disk: 640MiB\nkernel_args: [marker=3]\n"
    version, seen = world.build(world.define(text, base=make.IMAGE))
    assert "Debian's family" in notes(seen)[0]
    assert version.origin.builder == "bootc"
    assert version.origin.inputs["bootc_args"] == "--composefs-backend --bootloader systemd --wipe"
    assert version.virtual_size == 640 << 20
    text = in_disk(world, version, "/usr/share/version")
    assert "VERSION-OF-THE-TEST" in text
    assert "marker=3" in text
    assert "Installation complete!" in [event.text for event in seen]
    assert not list(world.pool.root.glob("staging.*"))


def test_bootcs_own_words_and_an_interruption(world: World) -> None:
    image = world.define("builder: bootc\nbuilder_args: [--frobnicate]\n", base=make.IMAGE)
    with pytest.raises(PoclabError, match="bootc install failed") as caught:
        world.build(image)
    assert caught.value.why == "unexpected argument '--frobnicate' found"
    assert "builder_args" in caught.value.fix
    assert world.nothing_left()
    interrupter = Interrupter("make the root file system")
    with pytest.raises(KeyboardInterrupt), events.listening(interrupter):
        world.build(world.define("builder: bootc\ndisk: 640MiB\n", base=make.IMAGE))
    assert interrupter.fired
    assert world.nothing_left()


# --- the cache --------------------------------------------------------------------------


def test_a_changed_containerfile_builds_only_what_changed(world: World) -> None:
    first, _ = world.build(world.define("builder: direct\n"))
    image = world.define("builder: direct\n", label="LABEL changed=1")
    with pytest.raises(PoclabError, match="built from other inputs") as caught:
        world.build(image)
    assert "differs in the container image" in caught.value.why
    # The name of the version's container image is the version's again.
    name = f"localhost/poclab/{image.name}:v1"
    found = podman.run("image", "inspect", "--format", "{{.Id}}", name).strip()
    assert found == first.origin.inputs["image_id"]
    second, seen = world.build(image, "v2")
    (log,) = world.logs.glob(f"build-{image.name}.v2-*.log")
    assert "Using cache" in log.read_text()
    assert any("the last disk took" in text for text in notes(seen))
    assert world.store.get(Ref(image.name, "v2")) == second
