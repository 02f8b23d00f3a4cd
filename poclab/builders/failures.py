"""Error texts of the disk builders, and podman's around them, turned into what to do."""

from __future__ import annotations

import re
from pathlib import Path

from poclab.builders.progress import Lines
from poclab.errors import PoclabError

# A pattern, why it happened (empty: the builder's own line says it) and what to do. The first
# that matches counts. Texts of osbuild's builders, bootc and podman.
KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"must be run in rootful \(not rootless\) podman",
        "its container was started by a rootless podman",
        "run poclab as root; with podman machine: podman machine set --rootful",
    ),
    (
        r"requires a privileged container",
        "its container was not privileged",
        "see that nothing drops --privileged: containers.conf, a podman alias, sudo rules",
    ),
    (
        r"could not access container storage|local storage not working",
        "its container does not see root's container storage, or it uses the vfs driver",
        'use the overlay driver: driver = "overlay" in /etc/containers/storage.conf, '
        "then build again",
    ),
    (
        r"does not resolve to an image ID",
        "it cannot find the image in root's container storage; it does not read vfs storage",
        'use the overlay driver: driver = "overlay" in /etc/containers/storage.conf, '
        "then build again",
    ),
    (
        r"failed to inspect the image|no longer pulls",
        "the image is not in root's container storage",
        "look with `sudo podman image ls`, then build again",
    ),
    (
        r"is not a bootc image",
        "the image has no label containers.bootc=1",
        "write LABEL containers.bootc=1 in the Containerfile, or use builder: direct",
    ),
    (
        r"missing required info: DefaultRootFs|no default root filesystem type",
        "the image names no root file system type",
        "write rootfs: ext4 (or xfs, btrfs) in image.yaml",
    ),
    (
        r"VERSION_ID",
        "",
        "set VERSION_ID to a number in the image's /usr/lib/os-release, or use builder: direct",
    ),
    (
        r"no space left on device",
        "the disk is full",
        "make room where the result goes and in root's container storage: sudo podman system prune",
    ),
    (
        r"unknown keys? found|cannot (read|decode|unmarshal) .*(config|blueprint)"
        r"|cannot read config|customizations? (is|are) not supported",
        "",
        "correct the blueprint; the builder refuses keys it does not know",
    ),
    (
        r"unknown (flag|shorthand flag|command)|unrecognized arguments|unexpected argument",
        "",
        "correct builder_args",
    ),
    (
        r"setfiles|selinux/targeted",
        "it labels files for SELinux always, and this image has no SELinux policy",
        "use builder: bootc or direct for Debian-family images",
    ),
    (
        r"No root filesystem specified|no filesystem type|--filesystem",
        "the image names no root file system type",
        "write rootfs: ext4 (or xfs, btrfs) in image.yaml",
    ),
    (
        r"executable file .?bootc.? not found|unrecognized subcommand",
        "",
        "the image needs a bootc that has `bootc install to-disk`; or use another builder",
    ),
    (
        r"must be executed inside a podman container|host pid namespace|--pid=host",
        "its container does not see the host's processes",
        "see that nothing drops --pid=host: containers.conf, a podman alias, sudo rules",
    ),
    (
        r"chowning is not allowed",
        "the output directory's file system takes no other owner",
        "have the pool, or the ISO, on a local file system of Linux",
    ),
    (
        r"losetup|loop device|/dev/loop",
        "",
        "load the loop module: sudo modprobe loop; containers may need to see /dev",
    ),
    (
        r"initializing source|pinging container registry|dial tcp|no such host|i/o timeout"
        r"|connection refused|image not known|unauthorized|manifest unknown|unable to pull",
        "the builder's own container image cannot be had",
        "check the network, or name a mirror or a local copy of it: builder_image in "
        "image.yaml, POCLAB_BIB_IMAGE or POCLAB_IMAGE_BUILDER_IMAGE",
    ),
    (
        r"a password is required|a terminal is required|not in the sudoers|may not run",
        "sudo does not give root",
        "run sudo -v first, or run poclab as root",
    ),
)

# `podman run`: 125 is podman's own failure, 126 and 127 a program that cannot be started.
_PODMAN_FAILED = (125, 126, 127)


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
    for text in (lines.said, "\n".join(lines.after)):
        for pattern, why, fix in KNOWN:
            if re.search(pattern, text, re.IGNORECASE):
                return PoclabError(what, why=f"{why} ({said})" if why else said, fix=fix)
    return PoclabError(what, why=said, fix="see the log")
