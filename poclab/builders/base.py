"""The protocol every disk builder keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from poclab.core.errors import UsageError

# An input of every build: raised when what poclab does around the builders changes the disk.
FORMAT = "1"


@dataclass(frozen=True)
class Output:
    """What a build ends in.

    Attributes:
        name: what poclab calls it.
        bib: bootc-image-builder's `--type`; empty when it cannot make it.
        bib_file: where that program leaves it, below its output directory.
        image_builder: image-builder's name for it; empty when it cannot make it.
        file: what the result is called in the work directory; its ending is image-builder's too.
        iso: whether it is an installer and not a disk.
        installer: whether the installer is a container image of its own.
        takes_kickstart: whether the blueprint's kickstart goes into it.
    """

    name: str
    bib: str
    bib_file: str
    image_builder: str
    file: str
    iso: bool = False
    installer: bool = False
    takes_kickstart: bool = False


QCOW2 = Output("qcow2", "qcow2", "qcow2/disk.qcow2", "qcow2", "disk.qcow2")
_ISO = "install.iso"
_BIB_ISO = f"bootiso/{_ISO}"
ANACONDA_ISO = Output(
    "anaconda-iso", "anaconda-iso", _BIB_ISO, "", _ISO, iso=True, takes_kickstart=True
)
BOOTC_INSTALLER = Output(
    "bootc-installer",
    "bootc-installer",
    _BIB_ISO,
    "bootc-installer",
    _ISO,
    iso=True,
    installer=True,
    takes_kickstart=True,
)
# What it asks and does is up to its installer image alone: it takes no blueprint
# (manifestForGenericISO in osbuild/images).
GENERIC_ISO = Output(
    "bootc-generic-iso", "", "", "bootc-generic-iso", _ISO, iso=True, installer=True
)
ISOS = (ANACONDA_ISO, BOOTC_INSTALLER, GENERIC_ISO)


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        image: the container image's name in local storage.
        image_id: its ID, 64 hexadecimal digits.
        workdir: an empty directory of the caller; the disk and the log go there.
        log: the file that gets the whole output.
        rootfs: "ext4", "xfs" or "btrfs".
        disk_size: bytes of the disk, or None for the builder's default.
        kernel_args: kernel arguments beside the builder's own.
        blueprint: a blueprint file (TOML or JSON) or None.
        builder_image: the builder's container image or None for its default.
        builder_args: extra arguments for the builder.
        expected: seconds that the last build of the same image took, or None.
        output: what to make.
        installer: the container image of the installer, for outputs that want one.
        kickstart: what the installer is to do, or None.
        unattended: whether the installer installs without asking.
    """

    image: str
    image_id: str
    workdir: Path
    log: Path
    rootfs: str = "ext4"
    disk_size: int | None = None
    kernel_args: tuple[str, ...] = ()
    blueprint: Path | None = None
    builder_image: str | None = None
    builder_args: tuple[str, ...] = ()
    expected: float | None = None
    output: Output = QCOW2
    installer: str | None = None
    kickstart: str | None = None
    unattended: bool = False


@dataclass(frozen=True)
class Built:
    """What came out.

    Attributes:
        disk: the output's file inside the request's workdir, owned by the caller.
        inputs: what is worth knowing beside `Builder.inputs`, for the version's origin.
    """

    disk: Path
    inputs: dict[str, str] = field(default_factory=dict)


class Builder(Protocol):
    """Makes a bootable qcow2 disk of a container image; those on osbuild make installers too."""

    name: str

    def check(self, request: BuildRequest) -> None:
        """See that the builder can do what is asked for, and that this host has what it needs.

        Raises:
            UsageError: it cannot.
            PoclabError: something is missing; the message names the package or command.
        """

    def inputs(self, request: BuildRequest) -> dict[str, str]:
        """What decides about the disk beside the container image, by `build_cache.INPUTS`.

        Quick, as it is asked before every build: nothing is pulled, exported or started. What
        cannot be known before the build (a builder that is not there yet) is left out.

        Raises:
            UsageError: the blueprint cannot be read.
            PoclabError: podman does not work.
        """

    def build(self, request: BuildRequest) -> Built:
        """Build the disk of a checked request.

        On any error or interruption nothing is left outside the workdir.

        Raises:
            PoclabError: the build failed; the message has the builder's last line.
        """


def only_disks(request: BuildRequest, builder: str) -> None:
    """See that a builder that makes disks alone is asked for one.

    Raises:
        UsageError: it is asked for an installer.
    """
    if request.output is not QCOW2:
        raise UsageError(
            f"{builder} makes no {request.output.name}",
            why="it makes disks alone",
            fix="use --builder bootc-image-builder or image-builder",
        )


def common_inputs(request: BuildRequest) -> dict[str, str]:
    """What every builder takes of a request; what is not set is left out."""
    given = {
        "format": FORMAT,
        "type": request.output.name,
        "rootfs": request.rootfs,
        "disk_size": "" if request.disk_size is None else str(request.disk_size),
        "kernel_args": " ".join(request.kernel_args),
        "builder_args": " ".join(request.builder_args),
    }
    return {name: value for name, value in given.items() if value}
