"""`image build` through real podman and the stand-in for bootc-image-builder.

See tests/support/builder_standin/README.md for what the stand-in keeps of the builder's contract.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.images.build import build_image
from poclab.model.version import Ref
from poclab.model.version_volumes import base_volume
from poclab.schema.image import load_image
from tests.support import builds, podman
from tests.support.builder_standin import make
from tests.support.builds import (
    GIB,
    URI,
    Interrupter,
    World,
    from_esp,
    from_ext4,
    partitions,
    raw,
)

STORAGE = "/var/lib/containers/storage"
BIB = f"builder: bootc-image-builder\nbuilder_image: {make.IMAGE}\n"


@pytest.fixture(scope="session")
def standin() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.fail("these tests need root, as the builder does: sudo make test")
    with podman.working():
        yield make.make()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standin: str) -> Iterator[World]:
    with builds.world(tmp_path, monkeypatch) as made:
        yield made


# --- the disk ---------------------------------------------------------------------------


def test_a_version_with_a_real_disk(world: World) -> None:
    image = world.define(BIB + "kernel_args: [console=ttyS0, marker=1]\nuser: anna\ndisk: 12GiB\n")
    seen: list[events.Event] = []
    with events.listening(seen.append):
        version = build_image(world.store, image, "v1", uri=URI)
    assert world.store.get(Ref(image.name, "v1")) == version
    assert version.virtual_size == 12 * GIB
    assert version.size < 100 << 20
    assert version.origin.builder == "bootc-image-builder"
    assert version.origin.inputs["builder_image"] == make.IMAGE
    assert version.origin.inputs["root_filesystem"] == "ext4"
    assert version.user == "anna"

    disk = raw(world, version.digest)
    (esp_start, _, esp_type), (root_start, root_size, _) = partitions(disk)
    assert esp_type == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # UEFI 2.10, table 5.7
    assert root_size * 512 > 11 * GIB
    assert from_esp(disk, esp_start, "EFI/BOOT/BOOTX64.EFI")[:2] == b"MZ"
    entry = from_esp(disk, esp_start, "loader/entries/poclab.conf").decode()
    assert "marker=1" in entry
    assert from_ext4(disk, root_start, "/usr/share/version") == "VERSION-OF-THE-TEST"
    assert "anna:x:1000:" in from_ext4(disk, root_start, "/etc/passwd")
    assert "wheel:x:10:anna" in from_ext4(disk, root_start, "/etc/group")
    argv = ["/usr/sbin/e2fsck", "-f", "-n", f"{disk}?offset={root_start * 512}"]
    assert subprocess.run(argv, timeout=120, capture_output=True, check=False).returncode == 0

    texts = [event.text for event in seen if event.kind == "progress"]
    assert "Manifest generation step" in texts
    assert all(texts)  # steps without a name keep the last one
    assert any(event.data.get("total") == 8.0 for event in seen if event.kind == "progress")
    # What `disk` becomes is not supported there, and done all the same.
    assert [event.text for event in seen if event.kind == "warning"] == []
    (log,) = world.logs.iterdir()
    assert "pulse: Disk image building step" in log.read_text()
    assert not list(world.pool.root.glob("staging.*"))


# --- errors -----------------------------------------------------------------------------


def test_an_image_that_is_not_bootc(world: World) -> None:
    image = world.define(BIB, label="LABEL other=1")
    with pytest.raises(PoclabError, match="is not a bootc image") as caught:
        build_image(world.store, image, "v1", uri=URI)
    assert "LABEL containers.bootc=1" in caught.value.fix
    assert world.nothing_left()


def test_a_layout_in_the_image_goes_before_rootfs(world: World) -> None:
    root = {"payload": {"type": "ext4", "mountpoint": "/"}}
    layout = json.dumps({"partition_table": {"partitions": [root]}}).encode()
    world.put("usr/lib/image-builder/bootc/disk.yaml", layout)
    image = world.define(BIB + "rootfs: xfs\n")
    version, seen = world.build(image)
    # What was asked for is an input; what was built is beside it.
    inputs = version.origin.inputs
    assert (inputs["rootfs"], inputs["root_filesystem"]) == ("xfs", "ext4")
    notes = [event.text for event in seen if event.kind == "note"]
    assert "the root file system is ext4, not xfs: a disk.yaml in the image decides" in notes
    again, _ = world.build(image)
    assert again == version


def test_a_blueprint_the_builder_refuses(world: World) -> None:
    (world.directory / "blueprint.toml").write_text("[customizations]\nno-such-key = 1\n")
    with pytest.raises(PoclabError, match="bootc-image-builder failed") as caught:
        build_image(world.store, world.define(BIB), "v1", uri=URI)
    assert "unknown keys found: [customizations.no-such-key]" in caught.value.why
    assert "blueprint" in caught.value.fix
    (log,) = world.logs.iterdir()
    assert str(log) in caught.value.what
    assert "unknown keys" in log.read_text()
    assert world.nothing_left()


def test_a_blueprint_key_that_the_builder_leaves_out(world: World) -> None:
    (world.directory / "blueprint.toml").write_text('[customizations]\nhostname = "web"\n')
    version, seen = world.build(world.define(BIB))
    assert version.virtual_size == 10 * GIB
    warnings = [event.text for event in seen if event.kind == "warning"]
    assert warnings == [
        "the builder ignores customizations.hostname of the blueprint: set it in the Containerfile"
    ]
    # The warning and the next line are one.
    assert "Done generating manifest" in [event.text for event in seen]


def test_a_failed_stage_of_osbuild(world: World) -> None:
    (world.directory / "rootfs/sbin/init").unlink()
    with pytest.raises(PoclabError, match="bootc-image-builder failed") as caught:
        build_image(world.store, world.define(BIB), "v1", uri=URI)
    assert "org.osbuild.bootc.install-to-filesystem: PoclabError: " in caught.value.why
    assert "has no init" in caught.value.why
    assert "Failed" not in caught.value.why
    assert "SELinux" not in str(caught.value)  # an earlier stage spoke of it
    assert "loop" not in caught.value.fix
    assert world.nothing_left()


def test_arguments_the_builder_refuses(world: World) -> None:
    image = world.define(BIB + "builder_args: [--frobnicate]\n")
    with pytest.raises(PoclabError) as caught:
        build_image(world.store, image, "v1", uri=URI)
    assert "unknown flag: --frobnicate" in caught.value.why
    assert "builder_args" in caught.value.fix
    assert world.nothing_left()


def test_a_builder_image_that_is_not_there(world: World) -> None:
    image = world.define(BIB)
    text = (world.directory / "image.yaml").read_text()
    text = text.replace(make.IMAGE, "localhost/poclab-test/none:1")
    (world.directory / "image.yaml").write_text(text)
    image = load_image(world.directory)
    with pytest.raises(PoclabError, match="podman could not run") as caught:
        build_image(world.store, image, "v1", uri=URI)
    assert "POCLAB_BIB_IMAGE" in caught.value.fix
    assert world.nothing_left()


@pytest.mark.parametrize(
    "text",
    [
        "look for kernel and initramfs",
        "run bootc-image-builder",
        "Disk image building step",
        "make the root file system",
        "take the disk",
    ],
)
def test_an_interrupted_build_leaves_nothing(world: World, text: str) -> None:
    interrupter = Interrupter(text)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), events.listening(interrupter):
        build_image(world.store, world.define(BIB), "v1", uri=URI)
    assert interrupter.fired
    assert time.monotonic() - begin < 60
    assert world.nothing_left()
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if "bib-out" in line]


def test_a_killed_build_is_cleaned_up_by_the_next(world: World) -> None:
    image = world.define(BIB)

    def die(event: events.Event) -> None:
        if event.text == "Disk image building step":
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        with events.listening(die):
            build_image(world.store, image, "v1", uri=URI)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert list(world.pool.root.glob("staging.*"))
    version = build_image(world.store, image, "v1", uri=URI)
    assert world.pool.names() == sorted(
        [base_volume(version.digest), f"manifest.{image.name}.v1.json"]
    )
    assert not list(world.pool.root.glob("staging.*"))
    containers = podman.run("ps", "--all", "--format", "{{.Names}}").split()
    assert not [name for name in containers if f"-{pid}-" in name]


# --- the stand-in keeps the contract ----------------------------------------------------


def standin_says(*argv: str, options: tuple[str, ...] = ("--privileged",)) -> str:
    """Run the stand-in by hand; gives its error, with what follows."""
    command = ["podman", "run", "--rm", "--pull=never", *options, make.IMAGE, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    found = re.search(r"^[0-9/]{10} [0-9:]{8} error: .*", done.stderr, re.MULTILINE | re.DOTALL)
    assert found, done.stderr
    return found[0]


def test_the_standins_own_refusals(standin: str, tmp_path: Path) -> None:
    mounts = ("-v", f"{tmp_path}:/output", "-v", f"{STORAGE}:{STORAGE}")
    full = ("--privileged", *mounts)
    assert "requires a privileged container" in standin_says("x", options=mounts)
    assert "could not access container storage, did you forget -v" in standin_says("x")
    assert "no longer pulls images" in standin_says("localhost/poclab-test/none", options=full)
    assert "deprecated" in standin_says("--local", "x", options=full)
    assert "unknown flag: --foo" in standin_says("--foo", "x", options=full)
    # The stand-in's own image is in the storage and is not a bootc image.
    assert "is not a bootc image" in standin_says(make.IMAGE, options=full)
    assert list(tmp_path.iterdir()) == []


def test_rootfs_is_needed_unless_the_image_names_it(world: World, tmp_path: Path) -> None:
    world.define(BIB)
    name = f"localhost/poclab/{world.directory.name}:v1"
    podman.run("build", "--tag", name, str(world.directory))
    output = tmp_path / "out"
    output.mkdir()
    full = ("--privileged", "-v", f"{output}:/output", "-v", f"{STORAGE}:{STORAGE}")
    assert "missing required info: DefaultRootFs" in standin_says(name, options=full)
    install = world.directory / "rootfs/usr/lib/bootc/install"
    install.mkdir(parents=True)
    (install / "00-fs.toml").write_text('[install.filesystem.root]\ntype = "ext4"\n')
    podman.run("build", "--tag", name, str(world.directory))
    podman.run("run", "--rm", "--pull=never", *full, make.IMAGE, "--chown", "12:34", name)
    disk = output / "qcow2/disk.qcow2"
    assert (disk.stat().st_uid, disk.stat().st_gid) == (12, 34)
    assert (output / "manifest-qcow2.json").is_file()
