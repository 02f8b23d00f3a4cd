"""What the stand-ins share: the container they run in, the image, and the disk of it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.support.builder_standin import image_tar
from tests.support.builder_standin.blueprint import Refused
from tests.support.builder_standin.storage import Image, Storage

STORAGE = Path("/var/lib/containers/storage")
CONTAINER = Path("/run/.containerenv")
GIB = 1024**3
DEFAULT_DISK = 10 * GIB
BESIDE_ROOT = 1528 * 1024**2
_MOUNT = Path("/run/standin")
# What the builders print after a failed stage: all of osbuild's messages, and its last line.
_FAILED_STAGE = """\
error running osbuild: exit status 1
BuildLog:
starting -
Starting pipeline build
Starting module org.osbuild.selinux
setfiles:
conflicting specifications for /run/osbuild/tree/a and /run/osbuild/tree/b
Finished module org.osbuild.selinux
Finished pipeline build
Starting pipeline image
Starting module org.osbuild.bootc.install-to-filesystem
device/disk (org.osbuild.loopback): loop0 acquired (locked: False)
mount/- (org.osbuild.ext4): mounting /dev/loop0p4 -> /store/tmp/buildroot-tmp/mounts/
Traceback (most recent call last):
  File "/run/osbuild/bin/org.osbuild.bootc.install-to-filesystem", line 90, in <module>
    sys.exit(r)
{}: {}
Finished module org.osbuild.bootc.install-to-filesystem
manifest - failed

Output:
Failed"""


class Parser(argparse.ArgumentParser):
    """Refuses as the real ones do."""

    unknown = "unknown flag: --{}"

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: --?([^= ]+)", message)
        raise Refused(self.unknown.format(unknown[1]) if unknown else message)


def check_container() -> None:
    """See that the container was started the way the builder needs."""
    if CONTAINER.is_file() and "rootless=1" in CONTAINER.read_text():
        raise Refused(
            "cannot validate the setup: this command must be run in rootful (not rootless) podman"
        )
    if not privileged():
        raise Refused("cannot validate the setup: this command requires a privileged container")


def privileged() -> bool:
    """Whether the container is privileged, told as the real ones tell it: by a writable /sys."""
    return os.access("/sys", os.W_OK) and not os.statvfs("/sys").f_flag & os.ST_RDONLY


BIB, IMAGE_BUILDER = "bootc-image-builder", "image-builder"
_NO_STORAGE = (
    "could not access container storage, did you forget "
    "-v /var/lib/containers/storage:/var/lib/containers/storage? "
    "(cannot find /var/lib/containers/storage)"
)


def find_image(name: str, builder: str) -> tuple[Storage, Image]:
    """Find the image, which has to be there and to be a bootc image; refused in a builder's words.

    bootc-image-builder asks podman for the image, image-builder has it start a container of it.
    """
    store = Storage(STORAGE)
    bib = builder == BIB
    if not store.drivers():
        raise Refused(("cannot build manifest: " if bib else "") + _NO_STORAGE)
    image = store.find(name)
    if image is None and bib:
        raise Refused(
            "cannot build manifest: failed to inspect the image: exit status 125, stderr:\n"
            f"Error: {name}: image not known\n\n"
            "bootc-image-builder no longer pulls images, make sure to pull it before running "
            f"bootc-image-builder:\n    sudo podman pull {name}"
        )
    if image is None:
        registry = f"pinging container registry {name.partition('/')[0]}"
        source = f"initializing source docker://{name}: {registry}: dial tcp: connection refused"
        raise Refused(
            f"running {name} container failed: exit status 125\nstderr:\n"
            f"Trying to pull {name}...\n"
            f'time="2026-11-28T23:39:04Z" level=warning msg="Failed, retrying in 1s ... (1/3). '
            f'Error: {source}"\n'
            f"Error: unable to copy from source docker://{name}: {source}\n"
        )
    if image.labels.get("containers.bootc") not in ("1", "true"):
        if bib:
            raise Refused(f"cannot build manifest: image {name} is not a bootc image")
        raise Refused(
            f'inspecting container "{name}" failed: exit status 125\nstderr:\n'
            f'Error: no such object: "{image.id}"\n'
        )
    return store, image


def check_files(store: Storage, image: Image, rootfs: str, failed: str = "") -> None:
    """See that the files make a system and name a root file system, unless that is given."""
    with store.files(image, _MOUNT) as tree:
        _check_tree(tree, rootfs, failed)


def _check_tree(tree: Path, rootfs: str, failed: str) -> None:
    os_release = tree / "usr/lib/os-release"
    if not os_release.is_file():
        os_release = tree / "etc/os-release"
    text = os_release.read_text() if os_release.is_file() else ""
    fields = dict(re.findall(r"""^([A-Z_]+)=["']?([^"'\n]*)""", text, re.MULTILINE))
    for key in ("ID", "VERSION_ID", "NAME"):
        if key not in fields:
            raise Refused(f"{failed}missing {key} in os-release")
    found = disk_yaml(tree) or rootfs or default_rootfs(tree)
    if not found:
        raise Refused(
            f"{failed}failed to initialize bootc distro: missing required info: DefaultRootFs"
        )
    version = fields["VERSION_ID"]
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", version):
        name = f"bootc-{fields['ID']}-{version}"
        raise Refused(
            f'{failed}error when parsing distro name "{name}": parsing major version failed, '
            f'inner error:\nstrconv.Atoi: parsing "{version}": invalid syntax'
        )
    if found != "ext4":
        raise Refused(f"a root file system of {found} is not in this stand-in, ext4 is")


def disk_yaml(tree: Path) -> str:
    """The root file system's type of the image's own layout, which goes before all else.

    The stand-in reads JSON, which is YAML (pkg/bib/osinfo of image-builder 79.0.0).
    """
    path = tree / "usr/lib/image-builder/bootc/disk.yaml"
    table = json.loads(path.read_text())["partition_table"] if path.is_file() else {}
    payloads = [part.get("payload", {}) for part in table.get("partitions", [])]
    return next((str(p.get("type", "")) for p in payloads if p.get("mountpoint") == "/"), "")


def default_rootfs(tree: Path) -> str:
    """The root file system's type that the image names for `bootc install`."""
    kind = ""
    for path in sorted((tree / "usr/lib/bootc/install").glob("*.toml")):
        root = tomllib.loads(path.read_text()).get("install", {}).get("filesystem", {})
        kind = root.get("root", {}).get("type", kind)
    return str(kind)


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def say_step(done: int, text: str) -> None:
    """Print the lines of a step as `--progress=debug` does: each begins without a name."""
    say(f"[{done} / 8] ")
    say(f"[{done} / 8] Pipeline image\n  [0 / 1] ")
    say(f"msg: Starting module {text}")
    say(f"[{done} / 8] Pipeline image\n  [1 / 1] {text}")


@contextmanager
def disk_of(
    store: Storage,
    found: Image,
    output: Path,
    step: Callable[[str], None],
    *,
    size: int,
    kernel_args: tuple[str, ...] = (),
    users: list[dict[str, Any]] | None = None,
) -> Iterator[Path]:
    """Make a qcow2 disk with poclab's direct builder, which gets the files as a tar file."""
    from poclab.builders.base import BuildRequest
    from poclab.builders.direct import Direct
    from poclab.containers import podman
    from poclab.core import events

    # On the output's file system: the container's own may be small.
    work = Path(tempfile.mkdtemp(prefix="osbuild-", dir=output))

    def listen(event: events.Event) -> None:
        if event.kind == "step":
            step(event.text)

    def export(image_id: str, tar: Path) -> None:
        with store.files(found, _MOUNT) as tree:
            image_tar.write(tree, tar, users or [])

    def inspect(image: str, *, root: bool = False) -> podman.ImageInfo:
        return podman.ImageInfo(found.id, image)

    podman.export = export
    podman.inspect = inspect
    request = BuildRequest(
        found.id, found.id, work, work / "log", disk_size=size, kernel_args=kernel_args
    )
    try:
        with events.listening(listen):
            built = Direct().build(request)
        yield built.disk
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(
    program: Callable[[list[str]], None],
    prefix: Callable[[], str] = str,
    running: str = "",
) -> int:
    """Run a program with its arguments; gives the exit status, after an error if it failed.

    Args:
        program: the program.
        prefix: what goes before the error.
        running: what goes before the words for a failed stage of osbuild.
    """
    # The first process of a container has no default actions.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    from poclab.core.errors import PoclabError

    try:
        program(sys.argv[1:])
    except Refused as error:
        why = str(error)
    except (PoclabError, OSError) as error:
        why = running + _FAILED_STAGE.format(type(error).__name__, " ".join(str(error).split()))
    else:
        return 0
    say(f"{prefix()}error: {why}")
    return 1
