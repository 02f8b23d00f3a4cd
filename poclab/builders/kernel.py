"""What makes a container image bootable: one kernel, its initramfs and an init.

Looked for among the names of the files alone, so that a wrong image is refused before
minutes are spent on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from poclab.core.errors import PoclabError

# The version is an image's word that ends up in messages and in manifests, so it has to look like
# `uname -r`: 64 bytes at most (utsname(2)). Other files are not kernels.
_VERSION = r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}"
# bootc images, and every package of a kernel on Fedora, keep it beside its modules.
_BOOTC_KERNEL = re.compile(rf"(?:usr/)?lib/modules/({_VERSION})/vmlinuz")
_BOOTC_INITRAMFS = re.compile(rf"(?:usr/)?lib/modules/({_VERSION})/initramfs\.img")
# Debian, Ubuntu, Fedora, Alpine: named after the version, or without one in tiny appliances.
_BOOT_KERNEL = re.compile(rf"(?:boot/)?vmlinuz(?:-({_VERSION}))?")
_BOOT_INITRAMFS = re.compile(
    rf"(?:boot/)?(?:initrd|initramfs)(?:\.img)?(?:-({_VERSION}?))?(?:\.img)?"
)

# What a kernel runs after the initramfs (init/main.c), in its order.
_KERNEL_INITS = ("sbin/init", "usr/sbin/init", "etc/init", "bin/init", "usr/bin/init")
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")


@dataclass(frozen=True)
class Kernel:
    """The kernel of an image.

    Attributes:
        version: what its modules' directory or its file is called after; may be empty.
        vmlinuz: its path in the image, without the leading slash.
        initramfs: the same of its initramfs.
    """

    version: str
    vmlinuz: str
    initramfs: str


@dataclass(frozen=True)
class Bootable:
    """How an image boots.

    Attributes:
        kernel: its one kernel.
        init: the init to name on the kernel command line, or an empty string where the
            kernel finds one by itself.
    """

    kernel: Kernel
    init: str


def find_kernel(names: Iterable[str], *, bootc: bool = False) -> Kernel:
    """Find the one kernel of an image and its initramfs.

    Args:
        names: the paths of the image's regular files, with or without `/` or `./` before them.
        bootc: look in /usr/lib/modules alone, where bootc wants both.

    Raises:
        PoclabError: there is no kernel, more than one, or none with an initramfs.
    """
    kernels: dict[str, str] = {}
    initramfs: dict[str, str] = {}
    for name in sorted(_bare(name) for name in names):
        if match := _BOOTC_KERNEL.fullmatch(name):
            kernels[match[1]] = name
        elif match := _BOOTC_INITRAMFS.fullmatch(name):
            initramfs[match[1]] = name
        elif bootc:
            continue
        elif match := _BOOT_KERNEL.fullmatch(name):
            kernels.setdefault(match[1] or "", name)
        elif match := _BOOT_INITRAMFS.fullmatch(name):
            initramfs.setdefault(match[1] or "", name)
    where = "/usr/lib/modules/VERSION/vmlinuz" + ("" if bootc else " or /boot/vmlinuz-VERSION")
    if not kernels:
        raise PoclabError(
            "the container image has no kernel",
            why=f"there is no {where}",
            fix="install a kernel package in the Containerfile",
        )
    return _the_one(kernels, initramfs, bootc)


def _the_one(kernels: dict[str, str], initramfs: dict[str, str], bootc: bool) -> Kernel:
    candidates = sorted(kernels)
    if not bootc and len(candidates) > 1:
        # A file without a version beside versioned ones is what a link would be, and one
        # without an initramfs is a copy of one that has it under another name (Arch Linux).
        named = [version for version in candidates if version]
        candidates = [version for version in named if version in initramfs] or named
    if len(candidates) > 1:
        raise PoclabError(
            f"the container image has {len(candidates)} kernels: {', '.join(candidates)}",
            why="which one to boot would be a guess",
            fix="remove all but one of them in the Containerfile",
        )
    (version,) = candidates
    if version not in initramfs:
        raise PoclabError(
            f"the container image has no initramfs for its kernel {version}".rstrip(),
            why=_missing_initramfs(version, bootc),
            fix="make one in the Containerfile, with dracut, update-initramfs or mkinitramfs",
        )
    return Kernel(version, kernels[version], initramfs[version])


def find_bootable(
    files: Iterable[str], others: Iterable[str], kernel_args: Iterable[str] = ()
) -> Bootable:
    """Find out how an image boots.

    Args:
        files: the paths of its regular files.
        others: the paths of its symbolic links.
        kernel_args: kernel arguments; `init=` among them settles the init.

    Raises:
        PoclabError: it has no kernel, no initramfs or no init.
    """
    regular = [_bare(name) for name in files]
    kernel = find_kernel(regular)
    if any(arg.startswith(("init=", "rdinit=")) for arg in kernel_args):
        return Bootable(kernel, "")
    present = {*regular, *(_bare(name) for name in others)}
    if any(name in present for name in _KERNEL_INITS):
        return Bootable(kernel, "")
    for name in _SYSTEMD:
        if name in present:
            return Bootable(kernel, f"/{name}")
    raise PoclabError(
        "the container image has no init",
        why="there is no /sbin/init and no /usr/lib/systemd/systemd",
        fix="install systemd or another init in the Containerfile, or give init= to the kernel",
    )


def _bare(name: str) -> str:
    return name.removeprefix(".").lstrip("/") if name.startswith(("./", "/")) else name


def _missing_initramfs(version: str, bootc: bool) -> str:
    if bootc:
        return f"there is no /usr/lib/modules/{version}/initramfs.img"
    names = [f"/usr/lib/modules/{version}/initramfs.img"] if version else []
    dash = f"-{version}" if version else ""
    return f"there is no {' or '.join([*names, f'/boot/initrd.img{dash}'])}"
