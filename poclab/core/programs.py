"""The programs that poclab starts, and the packages that bring them."""

from __future__ import annotations

from poclab.core.errors import PoclabError

PACKAGES = {
    "podman": "podman",
    "qemu-img": "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)",
    "ssh": "openssh-client (Debian, Ubuntu) or openssh-clients (Fedora)",
    "ssh-keygen": "openssh-client (Debian, Ubuntu) or openssh-clients (Fedora)",
    "mke2fs": "e2fsprogs",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mmd": "mtools",
    "e2fsck": "e2fsprogs",
    "sfdisk": "fdisk (Debian, Ubuntu) or util-linux (Fedora)",
    "prlimit": "util-linux",
    "losetup": "util-linux",
    "sudo": "sudo",
}


def missing(program: str) -> PoclabError:
    """The error for a program that this host lacks."""
    package = PACKAGES.get(program, program)
    return PoclabError(f"{program} is not installed", fix=f"install the package {package}")
