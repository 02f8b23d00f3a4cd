"""Error texts of the disk builders, and podman's around them, turned into what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from poclab.builders.progress import Lines
from poclab.core.errors import PoclabError


@dataclass(frozen=True)
class Known:
    """A text that is known.

    Attributes:
        pattern: a regular expression for it.
        why: why it happened; empty where the builder's own line says it. `{key}` is the pattern's
            group of that name, here and in `fix`.
        fix: what to do.
        podman: whether it counts only as podman's own failure: the builders run podman too.
    """

    pattern: str
    why: str
    fix: str
    podman: bool = False


_OVERLAY = (
    'use the overlay driver: driver = "overlay" in /etc/containers/storage.conf, then build again'
)
_ROOTFS = "write rootfs: ext4 (or xfs, btrfs) in image.yaml"
# The first that matches counts. Texts of image-builder 79.0.0 with the bootc-image-builder in it,
# of the archived bootc-image-builder, bootc 1.16.9, osbuild 191 and podman 5; where a text is of
# one of them only, its row says so.
KNOWN: tuple[Known, ...] = (
    Known(
        r"must be run in rootful \(not rootless\) podman",
        "its container was started by a rootless podman",
        "run poclab as root; with podman machine: podman machine set --rootful",
    ),
    Known(
        # The second one is bootc's.
        r"requires a privileged container|must be executed with full privileges",
        "its container was not privileged",
        "make sure that nothing drops --privileged: containers.conf, a podman alias, sudo rules",
    ),
    Known(
        r"could not access container storage",
        "its container does not see root's container storage, or it uses the vfs driver",
        _OVERLAY,
    ),
    Known(
        r"does not resolve to an image ID",
        "it cannot find the image in root's container storage; it does not read vfs storage",
        _OVERLAY,
    ),
    Known(
        # bootc-image-builder asks podman for the image; image-builder starts a container of it.
        r"failed to inspect the image|no longer pulls|^running \S+ container failed",
        "the image is not in root's container storage",
        "look with `sudo podman image ls`, then build again",
    ),
    Known(
        r"^inspecting container .* failed",  # image-builder
        "the container that it started of the image ended at once",
        "base the image on a bootc image, which has sleep(1), or use builder: direct",
    ),
    Known(
        r"is not a bootc image",
        "the image has no label containers.bootc=1",
        "write LABEL containers.bootc=1 in the Containerfile, or use builder: direct",
    ),
    Known(
        # The last two are of `bootc install`.
        r"missing required info: DefaultRootFs|No root filesystem specified|no filesystem type",
        "the image names no root file system type",
        _ROOTFS,
    ),
    Known(r"unsupported (?:root )?filesystem type", "", _ROOTFS),
    Known(
        r"VERSION_ID|parsing major version failed",
        "",
        "set VERSION_ID to a number in the image's /usr/lib/os-release, or use builder: direct",
    ),
    Known(
        r"missing (?P<key>NAME|ID) in os-release",
        "",
        "set {key} in the image's /usr/lib/os-release, or use builder: direct",
    ),
    Known(
        r"no space left on device",
        "the disk is full",
        "make room where the result goes and in root's container storage: sudo podman system prune",
    ),
    Known(
        r"customizations\.filesystem: not supported",
        "it does not support customizations.filesystem",
        "take it out of the blueprint: `disk` of image.yaml sizes /, and customizations.disk lays "
        "out other partitions",
    ),
    Known(
        # pkg/distro/validator.go of image-builder; an error since November 2025.
        r"(?P<key>customizations[\w.\[\]-]{0,200}): not supported",
        "it does not support {key} for this kind of output",
        "take {key} out of the blueprint; what it sets can be set in the Containerfile",
    ),
    Known(
        r"unknown keys? found|cannot (read|decode|unmarshal) .*(config|blueprint)",
        "",
        "correct the blueprint; the builder refuses keys it does not know",
    ),
    Known(
        r"unknown (flag|shorthand flag|command)|unrecognized arguments|unexpected argument",
        "",
        "correct builder_args",
    ),
    Known(
        r"setfiles|selinux/targeted",
        "it labels files for SELinux always, and this image has no SELinux policy",
        "use builder: bootc or direct for Debian-family images",
    ),
    Known(
        r"executable file .?bootc.? not found|unrecognized subcommand",
        "",
        "the image needs a bootc that has `bootc install to-disk`; or use another builder",
    ),
    Known(
        # The last one is what bootc's second attempt says, after it began anew on the host.
        r"must be executed inside a podman container|host pid namespace|--pid=host"
        r"|open pid1 mountns",
        "",
        "make sure that nothing drops --pid=host or --privileged (containers.conf, a podman alias, "
        "sudo rules); inside another container it cannot work",
    ),
    Known(
        # The second one is of the archived bootc-image-builder.
        r"chown permission check failed|chowning is not allowed",
        "the output directory's file system takes no other owner",
        "have the pool, or the ISO, on a local file system of Linux",
    ),
    Known(
        r"no dnf in container",
        "an installer of packages is put together with the image's own dnf",
        "add dnf to the image, or name an installer's image: --installer IMAGE",
    ),
    Known(
        r"failed to run lsinitrd",
        "it looks into the initramfs with the image's own lsinitrd",
        "add dracut to the image",
    ),
    Known(
        r"losetup: |failed to set up loop device|'loop-control'",
        "",
        "load the loop module: sudo modprobe loop; containers may need to see /dev",
    ),
    Known(
        r"/dev/loop\w+: Can't lookup blockdev",  # mount(8)
        "",
        "the partitions of its loop device do not appear in /dev: build where udev runs, not "
        "inside another container",
    ),
    Known(
        r"initializing source|pinging container registry|dial tcp|no such host|i/o timeout"
        r"|connection refused|image not known|unauthorized|manifest unknown|unable to pull",
        "the builder's own container image could not be pulled",
        "check the network, or name a mirror or a local copy of it: builder_image in "
        "image.yaml, POCLAB_BIB_IMAGE or POCLAB_IMAGE_BUILDER_IMAGE",
        podman=True,
    ),
    Known(
        r"a password is required|a terminal is required|not in the sudoers|may not run",
        "sudo does not give root",
        "run sudo -v first, or run poclab as root",
    ),
)

# `podman run`: 125 is podman's own failure, 126 and 127 a program that cannot be started.
_PODMAN_ITSELF = 125
_PODMAN_FAILED = (_PODMAN_ITSELF, 126, 127)


def explained(
    lines: Lines, code: int, log: Path, image: str, builder: str = "bootc-image-builder"
) -> PoclabError:
    """The error for a builder that failed.

    Args:
        lines: what it printed.
        code: podman's exit status.
        log: the file with all the output; named in the message.
        image: the container image that was run.
        builder: the program that failed.
    """
    what = f"{builder} failed (log: {log})"
    if code in _PODMAN_FAILED:
        what = f"podman could not run {image} (log: {log})"
    said = lines.said[:400] or f"exit status {code}"
    # Its own line first: what follows is the output of the programs it ran.
    for text in (lines.error, lines.said, "\n".join(lines.after)):
        for known in KNOWN:
            found = re.search(known.pattern, text, re.IGNORECASE)
            if found and (code == _PODMAN_ITSELF or not known.podman):
                why, fix = (words.format(**found.groupdict()) for words in (known.why, known.fix))
                return PoclabError(what, why=f"{why} ({said})" if why else said, fix=fix)
    return PoclabError(what, why=said, fix="see the log")
