"""The protocol every disk builder keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


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


@dataclass(frozen=True)
class Built:
    """What came out.

    Attributes:
        disk: a qcow2 file inside the request's workdir, owned by the caller.
        inputs: what went in beside the image, for the version's origin.
    """

    disk: Path
    inputs: dict[str, str] = field(default_factory=dict)


class Builder(Protocol):
    """Makes a bootable qcow2 disk of a container image."""

    name: str

    def check(self) -> None:
        """See that what the builder needs is on this host.

        Raises:
            PoclabError: something is missing; the message names the package or command.
        """

    def build(self, request: BuildRequest) -> Built:
        """Build the disk; on any error or interruption nothing is left outside the workdir.

        Raises:
            PoclabError: the build failed; the message has the builder's last line.
        """
