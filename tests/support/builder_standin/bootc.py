"""`bootc install to-disk`; runs inside the image that it installs, as /usr/bin/bootc.

The disk's file is written as it is: no loop device is used.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

from tests.support.builder_standin import shared
from tests.support.builder_standin.blueprint import Refused
from tests.support.builder_standin.shared import Parser

FAILED = "Installing to disk: "


def arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    if argv[:2] != ["install", "to-disk"]:
        raise Refused(f"unrecognized subcommand '{' '.join(argv[:2])}'")
    parser = Parser(prog="bootc", allow_abbrev=False, add_help=False)
    parser.unknown = (
        "unexpected argument '--{0}' found\n\n  tip: to pass '--{0}' as a value, use '-- --{0}'\n\n"
        "Usage: bootc install to-disk --generic-image --via-loopback --filesystem <FILESYSTEM> "
        "<DEVICE>\n\nFor more information, try '--help'."
    )
    parser.add_argument("device")
    parser.add_argument("--generic-image", action="store_true")
    parser.add_argument("--via-loopback", action="store_true")
    parser.add_argument("--wipe", action="store_true")
    parser.add_argument("--composefs-backend", action="store_true")
    parser.add_argument("--filesystem", default="")
    parser.add_argument("--bootloader", choices=("grub", "systemd"))
    parser.add_argument("--karg", action="append", default=[])
    given = parser.parse_args(argv[2:])
    if not given.via_loopback:
        raise Refused("a disk that is a device is not in this stand-in")
    return given


def check_container(device: Path) -> str:
    """See that the container was started the way bootc needs; gives its image's ID."""
    if not shared.CONTAINER.is_file():
        raise Refused("This command must be executed inside a podman container")
    if os.getpid() == 1:
        raise Refused(FAILED + "This command must be run with the podman --pid=host flag")
    if not Path("/dev/loop-control").exists():
        raise Refused(FAILED + "failed to set up loop device: No such file or directory")
    if not device.is_file():
        raise Refused(FAILED + f"Querying {device}: No such file or directory (os error 2)")
    if not shared.privileged():
        raise Refused(
            FAILED + "Querying root privilege: The container must be executed with full privileges "
            "(e.g. --privileged flag)"
        )
    found = re.search(r'^imageid="?([0-9a-f]{64})', shared.CONTAINER.read_text(), re.MULTILINE)
    if found is None:
        raise Refused(FAILED + "the container's image cannot be told")
    return found[1]


def check_backend(given: argparse.Namespace) -> None:
    """Debian's family has neither ostree nor bootupd: the real one fails late without these."""
    debian = "debian" in Path("/usr/lib/os-release").read_text()
    if debian and not (given.composefs_backend and given.bootloader == "systemd"):
        raise Refused(FAILED + "Creating ostree deployment: No such file or directory")


def program(argv: list[str]) -> None:
    """Do what the arguments say."""
    given = arguments(argv)
    device = Path(given.device)
    image_id = check_container(device)
    kind = given.filesystem or shared.default_rootfs(Path("/"))
    if not kind:
        raise Refused(FAILED + "No root filesystem specified")
    if kind != "ext4":
        raise Refused(f"a root file system of {kind} is not in this stand-in, ext4 is")
    check_backend(given)
    store, image = shared.find_image(image_id, shared.BIB)
    print(f"Installing image: docker://{image_id[:12]}", flush=True)
    with shared.disk_of(
        store,
        image,
        device.parent,
        lambda text: print(text, flush=True),
        size=device.stat().st_size,
        kernel_args=tuple(given.karg),
    ) as disk:
        # Into the file that is there: the real one writes it through a loop device.
        argv = ["qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", str(disk), str(device)]
        subprocess.run(argv, check=True, timeout=600)
    print("Installation complete!", flush=True)


def main() -> int:
    """Run; gives the exit status."""
    return shared.run(program)
