"""The bootc builder: `bootc install to-disk`, run from the image itself, onto a file.

No builder image is needed: the image brings bootc. It writes through a loop device, in a
privileged container. Fedora's and CentOS's images are deployed with ostree; Debian's family
has no ostree there and gets the composefs backend and systemd-boot.
"""

from __future__ import annotations

import os

from poclab.builders import commands, errors, inspect, privileged
from poclab.builders.base import BuildRequest, Built, common_inputs, only_disks
from poclab.builders.blueprint import DEFAULT_DISK
from poclab.builders.commands import RAW, Setup
from poclab.builders.progress import Lines, Progress
from poclab.containers import podman
from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.process import runner
from poclab.disks import pool_disks

# Set by poclab itself.
_OWN = ("--via-loopback", "--generic-image", "--filesystem", "--karg")
# What images without ostree, SELinux policy and bootupd need (bootc-install-to-disk(8)).
_DEBIAN = (("--composefs-backend",), ("--bootloader", "systemd"), ("--wipe",))


class Bootc:
    """Makes disks of bootc images with their own bootc.

    Args:
        user: the login that the disk must have; bootc cannot make one.
    """

    name = "bootc"

    def __init__(self, user: str | None = None) -> None:
        self.user = user

    def check(self, request: BuildRequest) -> None:
        """See that the programs are there and root can be had; see `Builder.check`."""
        check_request(request)
        privileged.check(self.name, "podman", "qemu-img", "losetup")

    def inputs(self, request: BuildRequest) -> dict[str, str]:
        """What decides about the disk; bootc itself is part of the image."""
        return common_inputs(request)

    def build(self, request: BuildRequest) -> Built:
        """Build the disk; see `Builder.build`.

        Raises:
            PoclabError: the image has no bootc or cannot boot, or the installation failed.
        """
        privileged.remove_leftovers(request.workdir)
        inspect.check_label(request.image, podman.inspect(request.image_id).labels)
        inside = inspect.look_inside(request)
        if not inside.bootc:
            raise PoclabError(
                f"the container image has no /{inspect.BOOTC}",
                fix="install bootc in the Containerfile, or use another builder",
            )
        if self.user not in (None, "root", *inside.users):
            events.warning(f"the image has no login {self.user}, and bootc makes none")
        podman.copy_to_root(request.image_id, request.image, request.workdir)
        if podman.inspect(request.image, root=True).id != request.image_id:
            raise PoclabError(f"{request.image} became another image meanwhile", fix="build again")
        return _run(request, family_args(inside, request.builder_args))


def check_request(request: BuildRequest) -> None:
    """See that nothing is asked for that bootc cannot do.

    Raises:
        UsageError: something is.
    """
    only_disks(request, Bootc.name)
    if request.blueprint or request.builder_image:
        raise UsageError(
            "bootc takes no blueprint and no builder image",
            fix="put it in the Containerfile, or use builder: image-builder",
        )
    for arg in request.builder_args:
        if arg.partition("=")[0] in _OWN:
            raise UsageError(
                f"builder_args: {arg.partition('=')[0]} is set by poclab",
                fix="use rootfs and kernel_args of image.yaml instead",
            )


def family_args(inside: inspect.Inside, given: tuple[str, ...]) -> tuple[str, ...]:
    """What the image's family of distributions needs and nobody has given yet."""
    if not inside.debian_family:
        return ()
    options = {arg.partition("=")[0] for arg in given}
    return tuple(word for words in _DEBIAN if words[0] not in options for word in words)


def _run(request: BuildRequest, family: tuple[str, ...]) -> Built:
    name = podman.container_name("bootc")
    with privileged.output_tree(request.workdir) as output:
        raw = output / RAW
        with raw.open("xb") as file:
            file.truncate(request.disk_size or DEFAULT_DISK)
        setup = Setup(
            output,
            privileged.graph_root(),
            name,
            root=os.geteuid() == 0,
            clear_entrypoint=bool(privileged.entrypoint(request.image_id)),
            family_args=family,
        )
        command = commands.bootc(request, setup)
        lines = Lines(Progress(request.expected), plain=True)
        events.step("run bootc install to-disk", container=name)
        try:
            code = runner().stream(command, lines.see, log=request.log, timeout=privileged.TIMEOUT)
        finally:
            podman.remove_container(name, root=True)
            privileged.release_loops(output)
        if code != 0:
            raise errors.explained(lines, code, request.log, request.image, "bootc install")
        target = request.workdir / request.output.file
        events.step("convert to qcow2", disk=str(target))
        pool_disks.convert_to_qcow2(raw, "raw", target)
    return Built(target, {"bootc_args": " ".join(family)} if family else {})
