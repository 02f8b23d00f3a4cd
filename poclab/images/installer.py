"""`poclab image iso`: an installer for real machines, of a version's container image."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from poclab.builders import auto, installer, osbuild, privileged
from poclab.builders.auto import AUTO
from poclab.builders.base import BuildRequest, Output
from poclab.containers import podman
from poclab.containers.podman import ImageInfo
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.events import Event
from poclab.core.plaintext import shown
from poclab.core.process import CommandFailed, runner
from poclab.core.units import GIB, MIB, format_size
from poclab.disks import iso9660
from poclab.disks.digest import file_digest
from poclab.images import output_file
from poclab.images.build import ROOT_FILE_SYSTEM, naming, new_log
from poclab.model.version import Ref, Version
from poclab.store.versions import Store

# What the installer takes beside the container image, about: Anaconda's root, kernel, initramfs.
_INSTALLER = GIB
# A build ends when a file system has less than this left.
_RESERVE = 64 * MIB


@dataclass(frozen=True)
class InstallerRequest:
    """What the installer is to be.

    Attributes:
        target: the file.
        force: whether one that is there may be replaced.
        kickstart: a kickstart file for it, or None.
        unattended: whether it erases the machine's disks and installs without asking.
        blueprint: a blueprint file, or None.
        installer: the container image that installs, or None for the distribution's packages.
        output: one of `base.ISOS`, or None for the one that goes with `installer`.
        builder: "auto" or a builder's name.
    """

    target: Path
    force: bool = False
    kickstart: Path | None = None
    unattended: bool = False
    blueprint: Path | None = None
    installer: str | None = None
    output: Output | None = None
    builder: str = AUTO


@dataclass(frozen=True)
class Iso:
    """An ISO that was made.

    Attributes:
        path: the file.
        size: its bytes.
        sha256: its digest, `sha256:HEX`.
        label: its volume's identifier.
    """

    path: Path
    size: int
    sha256: str
    label: str


def make_iso(store: Store, ref: Ref, request: InstallerRequest) -> Iso:
    """Make an installer of a version's container image.

    Whatever goes wrong, nothing is under the file's name; what a killed one left is removed by the
    next one in that directory.

    Args:
        store: where the version is.
        ref: the version.
        request: what is wanted.

    Raises:
        UsageError: the options contradict each other or cannot be fulfilled.
        PoclabError: the version has no container image any more, there is no room, or the build
            failed; the message names the log.
    """
    output_file.check(request.target, force=request.force)
    kickstart = installer.read_kickstart(request.kickstart) if request.kickstart else None
    output, builder = auto.for_iso(request.output, request.builder, request.installer)
    version = store.get(ref)
    image = container_image(version)
    inputs = version.origin.inputs
    log = new_log(ref, f"poclab image iso {ref} --output {request.target}")

    def build_request(work: Path) -> BuildRequest:
        return BuildRequest(
            image=image.name,
            image_id=image.id,
            workdir=work,
            log=log,
            rootfs=inputs.get(ROOT_FILE_SYSTEM) or inputs.get("rootfs", "ext4"),
            kernel_args=tuple(inputs.get("kernel_args", "").split()),
            blueprint=request.blueprint,
            builder_image=_builder_image(version, builder),
            output=output,
            installer=request.installer,
            kickstart=kickstart,
            unattended=request.unattended,
        )

    with naming(log):
        made = osbuild.Osbuild(builder, version.user)
        made.check(build_request(log.parent))
        # Before minutes are spent; the builder merges it again with what it finds in the image.
        _tell(request, output, installer.merged(build_request(log.parent), None, builder))
        if "blueprint" in inputs and request.blueprint is None:
            events.note(f"{ref} was built with a blueprint: what it says is not in the installer")
        for name in podman.remove_leftovers():
            events.debug(f"removed container {name}, left by an interrupted build")
        with output_file.beside(request.target) as work:
            with _room(image.size + _INSTALLER, (work, privileged.graph_root())):
                built = made.build(build_request(work))
            events.step("check the ISO", iso=str(built.disk))
            volume = iso9660.read(built.disk)
            if not volume.bootable:
                raise PoclabError("the builder made an ISO that does not start", fix="see the log")
            made_iso = Iso(
                request.target,
                built.disk.stat().st_size,
                file_digest(built.disk, "sha256"),
                volume.label,
            )
            output_file.publish(built.disk, request.target, force=request.force)
    return made_iso


def container_image(version: Version) -> ImageInfo:
    """The container image a version was built from, by a name that is its.

    Raises:
        PoclabError: there was none, or it is not in this user's storage any more.
    """
    origin, ref = version.origin, version.ref
    if origin.kind != "built":
        raise PoclabError(
            f"{ref} has no container image",
            why=f"it was {origin.kind}: {shown(origin.source, 200)}",
            fix="an installer is made of a version that was built: poclab image build",
        )
    image_id = origin.inputs.get("image_id", "")
    if not image_id or not podman.exists(image_id):
        raise PoclabError(
            f"the container image of {ref} is not in this user's storage any more",
            why=f"it was {shown(origin.source, 200)}, {origin.digest or 'of no known digest'}",
            fix=f"build it again as another version: poclab image build {ref.image} --tag NEW",
        )
    info = podman.inspect(image_id)
    name = origin.source
    if not podman.exists(name) or podman.inspect(name).id != info.id:
        # The name is another image's by now; the version's own is poclab's to give.
        name = f"localhost/poclab/{ref}"
        events.step("name the container image", image=image_id, name=name)
        try:
            runner().run([*podman.podman(), "tag", image_id, name], timeout=60)
        except CommandFailed as error:
            raise PoclabError("podman tag failed", why=error.result.last_line) from error
    return ImageInfo(info.id, name, info.digest, info.labels, info.size)


def _builder_image(version: Version, builder: str) -> str | None:
    """The builder's container image that made the disk, a mirror's for one.

    None where the environment names another, or another builder did.
    """
    inputs = version.origin.inputs
    if os.environ.get(osbuild.VARIABLES[builder]) or inputs.get("program") != builder:
        return None
    return inputs.get("builder_image")


def _tell(request: InstallerRequest, output: Output, blueprint: dict[str, object]) -> None:
    """Say what the installer will do to a machine."""
    custom = blueprint.get("customizations")
    settings = custom.get("installer", {}) if isinstance(custom, dict) else {}
    if not output.takes_kickstart:
        events.note(f"what the installer asks is up to {request.installer}")
    elif settings.get("unattended"):
        events.warning("the installer erases the disks of the machine it starts on, unasked")
    elif request.kickstart:
        events.note(f"the installer does what {request.kickstart} says, and asks for the rest")
    else:
        events.note("the installer asks for the disk")


# --- room -------------------------------------------------------------------------------


@contextmanager
def _room(needed: int, paths: Sequence[Path]) -> Iterator[None]:
    """See that there is room before the block, and that some is left while it runs.

    Raises:
        PoclabError: there is not.
    """
    for path in paths:
        free = shutil.disk_usage(path).free
        if free < needed:
            raise _no_room(path, f"it needs about {format_size(needed)} and has", free)

    def look(event: Event) -> None:
        if event.kind == "progress":
            for path in paths:
                free = shutil.disk_usage(path).free
                if free < _RESERVE:
                    raise _no_room(path, "the build was ended while it had", free)

    with events.listening(look):
        yield


def _no_room(path: Path, why: str, free: int) -> PoclabError:
    return PoclabError(
        f"{path} has no room for the build",
        why=f"{why} {format_size(free)}",
        fix="make room, or have the ISO in another directory",
    )
