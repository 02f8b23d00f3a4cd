"""`image iso` through real podman and the stand-ins for the builders; the ISOs are read back.

See tests/support/builder_standin/README.md for what the stand-ins keep of the contracts.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from poclab.builders import osbuild, progress
from poclab.builders.base import BOOTC_INSTALLER
from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.images import installer as installers
from poclab.images import output_file
from poclab.images.installer import InstallerRequest, Iso, make_iso
from poclab.model.version import Ref
from tests.support import builds, podman
from tests.support.builder_standin import make
from tests.support.builds import Interrupter, World
from tests.support.hosts import Host

HOST_BIN = Path(make.__file__).parent / "host_bin"
DIRECT = "builder: direct\nkernel_args: [console=ttyS0, marker=1]\n"


@pytest.fixture(scope="module")
def standin() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.fail("these tests need root, as the builders do: sudo make test")
    with podman.working():
        make.make()
        yield


@dataclass(frozen=True)
class Place:
    """A version, and a directory for ISOs.

    Attributes:
        world: the version's.
        ref: the version.
        target: an ISO that is not there yet.
    """

    world: World
    ref: Ref
    target: Path

    def make(self, **request: Any) -> Iso:
        return make_iso(self.world.store, self.ref, InstallerRequest(self.target, **request))

    def write(self, name: str, text: str) -> Path:
        path = self.world.directory / name
        path.write_text(text)
        return path

    def nothing_but(self, *names: str) -> bool:
        """Whether these files are beside the target and nothing else, and no container is left."""
        containers = podman.run("ps", "--all", "--format", "{{.Names}}").split()
        mine = [name for name in containers if f"-{os.getpid()}-" in name]
        there = sorted(path.name for path in self.target.parent.iterdir())
        return there == sorted(names) and not mine


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, standin: None) -> Iterator[World]:
    """A version v1 of the ordinary image, and v2 of Debian's family."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(osbuild.BIB_VARIABLE, make.IMAGE)
        patch.delenv(osbuild.IMAGE_BUILDER_VARIABLE, raising=False)
        with builds.world(tmp_path_factory.mktemp("world"), patch) as world:
            world.build(world.define(DIRECT))
            world.put("usr/lib/os-release", b'NAME=Debian\nID=debian\nVERSION_ID="12"\n')
            world.build(world.define(DIRECT), "v2")
            yield world


@pytest.fixture
def place(built: World, tmp_path: Path) -> Place:
    (tmp_path / "isos").mkdir()
    return Place(built, Ref(built.directory.name, "v1"), tmp_path / "isos/out.iso")


# --- reading it back --------------------------------------------------------------------


def xorriso(*words: str) -> str:
    argv = ["xorriso", *words]
    done = subprocess.run(argv, check=True, timeout=120, capture_output=True, text=True)
    return done.stdout + done.stderr


def unpacked(made: Iso) -> Path:
    """The ISO's files."""
    target = made.path.with_suffix(".files")
    xorriso("-osirrox", "on", "-indev", str(made.path), "-extract", "/", str(target))
    return target


def payload(files: Path) -> dict[str, bytes]:
    """The files of the container image in an ISO, an OCI layout of one layer."""
    blobs = files / "container/blobs/sha256"

    def blob(entry: dict[str, Any]) -> bytes:
        data: bytes = (blobs / entry["digest"].removeprefix("sha256:")).read_bytes()
        assert sha256(data).hexdigest() == entry["digest"].removeprefix("sha256:")
        return data

    index = json.loads((files / "container/index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]))
    found = {}
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob(layer)))) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                if file:
                    found[member.name] = file.read()
    return found


def kickstart(files: Path) -> str:
    """What Anaconda would do, the included file in place."""
    text = (files / "osbuild.ks").read_text()
    first, _, rest = text.partition("\n")
    assert first == "%include /run/install/repo/osbuild-base.ks"
    return (files / "osbuild-base.ks").read_text() + rest


# --- made of packages, by bootc-image-builder -------------------------------------------


def test_an_iso_that_asks(place: Place) -> None:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        made = place.make()
    data = place.target.read_bytes()
    assert made == Iso(
        place.target,
        len(data),
        "sha256:" + sha256(data).hexdigest(),
        "Container-Installer-x86_64",
    )
    assert place.target.stat().st_uid == os.getuid()
    assert place.nothing_but("out.iso")
    # From a disc by El Torito's UEFI entry, from a stick by the partition of the same file system.
    told = xorriso("-indev", str(place.target), "-report_el_torito", "plain")
    assert "UEFI" in told
    assert data[510:512] == b"\x55\xaa"
    files = unpacked(made)
    assert payload(files)["usr/share/version"] == b"VERSION-OF-THE-TEST"
    assert (files / "images/pxeboot/vmlinuz").read_bytes()[:2] == b"MZ"
    text = kickstart(files)
    assert "ostreecontainer --url=/run/install/repo/container" in text
    assert f"--transport registry localhost/poclab/{place.ref}" in text
    assert "bootloader --append='console=ttyS0 marker=1'" in text
    for word in ("clearpart", "autopart", "reboot"):
        assert word not in text
    assert "the installer asks for the disk" in [event.text for event in seen]
    assert "Disk image building step" in [event.text for event in seen]
    logs = [path.read_text() for path in place.world.logs.glob("*.log")]
    (log,) = [text for text in logs if text.startswith(f"poclab image iso {place.ref} ")]
    assert "pulse: Disk image building step" in log


def test_an_unattended_iso_with_a_login(place: Place) -> None:
    blueprint = place.write("iso.toml", '[[customizations.user]]\nname = "anna"\nkey = "ssh-x"\n')
    seen: list[events.Event] = []
    with events.listening(seen.append):
        made = place.make(unattended=True, blueprint=blueprint)
    text = kickstart(unpacked(made))
    assert "clearpart --all" in text
    assert "autopart --nohome --type=plain --fstype=ext4" in text
    assert 'bootloader --append="console=ttyS0 marker=1"' in text
    assert "user --name anna" in text
    warnings = [event.text for event in seen if event.kind == "warning"]
    assert warnings == ["the installer erases the disks of the machine it starts on, unasked"]


def test_an_iso_with_a_kickstart(place: Place) -> None:
    lines = "text --non-interactive\nclearpart --all\nautopart --noswap\nrootpw --lock\n"
    made = place.make(kickstart=place.write("lab.ks", lines))
    assert kickstart(unpacked(made)).endswith(lines)


# --- made of an image that installs ---------------------------------------------------------


INSTALLER = f"localhost/poclab-test/installer-{os.getpid()}:1"


@pytest.fixture(scope="module")
def installer(built: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    make.make_image_builder()
    context = tmp_path_factory.mktemp("installer")
    (context / "who").write_text("the installer")
    v1 = f"localhost/poclab/{built.directory.name}:v1"
    (context / "Containerfile").write_text(f"FROM {v1}\nCOPY who /usr/share/version\n")
    podman.run("build", "--tag", INSTALLER, str(context))
    yield INSTALLER
    podman.run("rmi", "--force", INSTALLER)


def live(files: Path) -> str:
    """What the image that installs has in place of the other one's."""
    with tarfile.open(files / "LiveOS/installer.tar") as archive:
        file = archive.extractfile("usr/share/version")
        assert file
        return file.read().decode()


@pytest.mark.parametrize("how", ["container", "host"])
def test_a_generic_iso(
    place: Place, installer: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(progress, "_POLL", 0.01)
    if how == "container":
        monkeypatch.setenv(osbuild.IMAGE_BUILDER_VARIABLE, make.IMAGE_BUILDER)
    else:
        monkeypatch.setenv("PATH", f"{HOST_BIN}:{os.environ['PATH']}")
    seen: list[events.Event] = []
    with events.listening(seen.append):
        made = place.make(installer=installer)
    assert place.target.stat().st_uid == os.getuid()
    assert place.nothing_but("out.iso")
    files = unpacked(made)
    assert live(files) == "the installer"
    assert payload(files)["usr/share/version"] == b"VERSION-OF-THE-TEST"
    assert not (files / "osbuild.ks").exists()
    texts = [event.text for event in seen]
    assert f"what the installer asks is up to {installer}" in texts
    assert "org.osbuild.xorrisofs" in texts


@pytest.mark.parametrize("builder", ["image-builder", "bootc-image-builder"])
def test_an_iso_of_an_image_with_anaconda(
    place: Place, installer: str, monkeypatch: pytest.MonkeyPatch, builder: str
) -> None:
    monkeypatch.setenv(osbuild.IMAGE_BUILDER_VARIABLE, make.IMAGE_BUILDER)
    made = place.make(installer=installer, output=BOOTC_INSTALLER, builder=builder)
    files = unpacked(made)
    assert live(files) == "the installer"
    assert payload(files)["usr/share/version"] == b"VERSION-OF-THE-TEST"
    text = kickstart(files)
    assert f"--transport registry localhost/poclab/{place.ref}" in text
    assert "bootloader --append='console=ttyS0 marker=1'" in text
    assert "autopart" not in text


def test_a_builder_that_turns_out_to_be_another_one(
    place: Place, installer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(osbuild.BIB_VARIABLE, make.IMAGE_BUILDER)
    with pytest.raises(UsageError, match="image-builder makes no anaconda-iso"):
        place.make()
    assert place.nothing_but()


# --- as a command -------------------------------------------------------------------------


def test_the_command(system_host: Host, standin: None) -> None:
    """As root does it, whose digest goes to sha256sum."""
    host = system_host
    for name, data in builds.FILES.items():
        path = host.write(f"images/tiny/rootfs/{name}", "")
        path.write_bytes(data)
    host.write("images/tiny/image.yaml", "builder: direct\n")
    host.write(
        "images/tiny/Containerfile",
        "FROM scratch\nCOPY rootfs/ /\nLABEL containers.bootc=1\n",
    )
    env: dict[str, Any] = podman.environment() | {osbuild.BIB_VARIABLE: make.IMAGE}
    directory = str(host.scratch / "images/tiny")
    host.poclab("image", "build", directory, "--tag", "v1", **env)
    target = str(host.scratch / "tiny.iso")
    done = host.poclab("image", "iso", "tiny:v1", "-o", target, **env)
    assert host.run("sha256sum", "--check", "-", input=done.stdout).stdout == f"{target}: OK\n"
    assert "the installer asks for the disk" in done.stderr
    assert f"sudo dd if={target} of=/dev/sdX bs=4M" in done.stderr
    again = host.poclab("image", "iso", "tiny:v1", "-o", target, check=False, **env)
    assert again.returncode == 1
    assert "fix: use another name, or --force" in again.stderr
    # What cannot be written to is refused before minutes are spent.
    other = str(host.scratch / "other.iso")
    argv = ("image", "iso", "tiny:v1", "-o", other, "--write", target)
    refused = host.poclab(*argv, check=False, **env)
    assert refused.returncode == 2
    assert f"{target} is no disk" in refused.stderr
    assert not Path(other).exists()


# --- what is there already, and what was left -------------------------------------------


def test_a_file_that_is_there(place: Place) -> None:
    place.target.write_bytes(b"mine")
    with pytest.raises(PoclabError, match="is there already") as caught:
        place.make()
    assert "--force" in caught.value.fix
    assert place.target.read_bytes() == b"mine"
    made = place.make(force=True)
    assert place.target.stat().st_size == made.size
    assert place.nothing_but("out.iso")


@pytest.mark.parametrize(
    "text",
    [
        "look for kernel and initramfs",
        "org.osbuild.xorrisofs",
        "take the disk",
        "name the file",
    ],
)
def test_an_interrupted_one_leaves_nothing(place: Place, text: str) -> None:
    interrupter = Interrupter(text)
    with pytest.raises(KeyboardInterrupt), events.listening(interrupter):
        place.make()
    assert interrupter.fired
    assert place.nothing_but()


def test_what_a_killed_one_leaves_the_next_one_removes(place: Place) -> None:
    def die(event: events.Event) -> None:
        if event.text == "org.osbuild.kickstart":
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        with events.listening(die):
            place.make()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    left = place.target.parent / output_file.WORK
    assert list(left.rglob("*"))
    assert not place.target.exists()
    place.make()
    assert place.nothing_but("out.iso")
    containers = podman.run("ps", "--all", "--format", "{{.Names}}").split()
    assert not [name for name in containers if f"-{pid}-" in name]


# --- refusals ---------------------------------------------------------------------------


def test_debians_family_and_then_a_container_image_that_is_gone(place: Place) -> None:
    ref = Ref(place.ref.image, "v2")
    with pytest.raises(PoclabError, match="no installer of Debian's family"):
        make_iso(place.world.store, ref, InstallerRequest(place.target))
    podman.run("rmi", "--force", f"localhost/poclab/{ref}")
    with pytest.raises(PoclabError, match="not in this user's storage any more") as caught:
        make_iso(place.world.store, ref, InstallerRequest(place.target))
    assert f"poclab image build {ref.image}" in caught.value.fix
    assert place.nothing_but()


def test_a_name_that_is_another_images_by_now(place: Place) -> None:
    other = f"localhost/poclab/{place.ref}"
    image_id = place.world.store.get(place.ref).origin.inputs["image_id"]
    podman.run("tag", make.IMAGE, other)
    made = place.make()
    assert payload(unpacked(made))["usr/share/version"] == b"VERSION-OF-THE-TEST"
    assert podman.run("image", "inspect", "--format", "{{.Id}}", other).strip() == image_id


def test_no_room(place: Place, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=True)
    try:
        with pytest.raises(PoclabError, match="has no room for the build") as caught:
            make_iso(place.world.store, place.ref, InstallerRequest(small / "out.iso"))
        assert "has 8" in caught.value.why
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_file_system_that_fills_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(event: events.Event) -> None:
        if event.text == "run bootc-image-builder":
            monkeypatch.setattr(installers, "_RESERVE", 1 << 60)

    with events.listening(fill), pytest.raises(PoclabError, match="has no room") as caught:
        place.make()
    assert "was ended" in caught.value.why
    assert place.nothing_but()


def test_the_builders_own_refusal(place: Place) -> None:
    text = "[customizations.installer]\nsurprise = 1\n"
    with pytest.raises(PoclabError, match="bootc-image-builder failed") as caught:
        place.make(unattended=True, blueprint=place.write("iso.toml", text))
    assert "unknown keys found: [customizations.installer.surprise]" in caught.value.why
    assert place.nothing_but()


def test_builders_of_disks_alone(place: Place) -> None:
    for builder in ("direct", "bootc"):
        with pytest.raises(UsageError, match=f"{builder} makes no installers"):
            place.make(builder=builder)
