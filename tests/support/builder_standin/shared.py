"""What the stand-ins share: the container they run in, the image, and the disk of it."""

from __future__ import annotations

import argparse
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
    # As the real one: a writable /sys tells a privileged container.
    if not os.access("/sys", os.W_OK) or os.statvfs("/sys").f_flag & os.ST_RDONLY:
        raise Refused("cannot validate the setup: this command requires a privileged container")


def find_image(name: str) -> tuple[Storage, Image]:
    """Find the image, which has to be there and to be a bootc image."""
    store = Storage(STORAGE)
    if not store.drivers():
        raise Refused(
            "cannot build manifest: could not access container storage, did you forget "
            "-v /var/lib/containers/storage:/var/lib/containers/storage?"
        )
    image = store.find(name)
    if image is None:
        raise Refused(
            f"cannot build manifest: failed to inspect the image: {name}: image not known; "
            "bootc-image-builder no longer pulls images, make sure to pull it before running "
            f"bootc-image-builder: sudo podman pull {name}"
        )
    if image.labels.get("containers.bootc") not in ("1", "true"):
        raise Refused(
            f"cannot build manifest: image {name} is not a bootc image "
            "(missing label containers.bootc=1)"
        )
    return store, image


def check_files(store: Storage, image: Image, rootfs: str) -> None:
    """See that the files make a system and name a root file system, unless that is given."""
    with store.files(image, _MOUNT) as tree:
        _check_tree(tree, rootfs)


def _check_tree(tree: Path, rootfs: str) -> None:
    os_release = tree / "usr/lib/os-release"
    if not os_release.is_file():
        os_release = tree / "etc/os-release"
    text = os_release.read_text() if os_release.is_file() else ""
    version = re.search(r"""^VERSION_ID=["']?([^"'\n]*)""", text, re.MULTILINE)
    failed = "cannot build manifest: failed to initialize bootc distro: "
    if version is None:
        raise Refused(failed + "missing VERSION_ID in os-release")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", version[1]):
        raise Refused(failed + f"cannot parse VERSION_ID {version[1]}")
    found = rootfs or default_rootfs(tree)
    if not found:
        raise Refused(failed + "missing required info: DefaultRootFs")
    if found != "ext4":
        raise Refused(f"a root file system of {found} is not in this stand-in, ext4 is")


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
    from poclab import container, events
    from poclab.builders.base import BuildRequest
    from poclab.builders.direct import Direct

    # On the output's file system: the container's own may be small.
    work = Path(tempfile.mkdtemp(prefix="osbuild-", dir=output))

    def listen(event: events.Event) -> None:
        if event.kind == "step":
            step(event.text)

    def export(image_id: str, tar: Path) -> None:
        with store.files(found, _MOUNT) as tree:
            image_tar.write(tree, tar, users or [])

    def inspect(image: str, *, root: bool = False) -> container.ImageInfo:
        return container.ImageInfo(found.id, image)

    container.export = export
    container.inspect = inspect
    request = BuildRequest(
        found.id, found.id, work, work / "log", disk_size=size, kernel_args=kernel_args
    )
    try:
        with events.listening(listen):
            built = Direct().build(request)
        yield built.disk
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(program: Callable[[list[str]], None], prefix: Callable[[], str] = str) -> int:
    """Run a program with its arguments; gives the exit status, after a last line if it failed."""
    # The first process of a container has no default actions.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    from poclab.errors import PoclabError

    try:
        program(sys.argv[1:])
    except Refused as error:
        why = str(error)
    except PoclabError as error:
        why = f"cannot run osbuild: {error.what}; {error.why}"
    except OSError as error:
        why = f"cannot run osbuild: {error}"
    else:
        return 0
    say(f"{prefix()}error: {why}")
    return 1
