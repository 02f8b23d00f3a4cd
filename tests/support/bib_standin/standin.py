"""The stand-in's entry point; runs inside its container as /usr/bin/bootc-image-builder."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NoReturn

from tests.support.bib_standin import blueprint, image_tar
from tests.support.bib_standin.blueprint import Customizations, Refused
from tests.support.bib_standin.storage import Image, Storage

STORAGE = Path("/var/lib/containers/storage")
GIB = 1024**3
DEFAULT_DISK = 10 * GIB
BESIDE_ROOT = 1528 * 1024**2
DEPRECATED = ("local", "tls-verify")


class Parser(argparse.ArgumentParser):
    """Refuses as the real one does."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: --?([^= ]+)", message)
        raise Refused(f"unknown flag: --{unknown[1]}" if unknown else message)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    for word in argv:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--") and name in DEPRECATED:
            raise Refused(f"flag --{name} is deprecated, this stand-in refuses it")
    parser = Parser(prog="bootc-image-builder", allow_abbrev=False, add_help=False)
    parser.add_argument("image", nargs="?")
    parser.add_argument("--type", action="append")
    parser.add_argument("--rootfs", default="")
    parser.add_argument("--output", default="/output")
    parser.add_argument("--chown", default="")
    parser.add_argument("--progress", default="auto")
    parser.add_argument("--log-level", default="error")
    parser.add_argument("--verbose", "-v", action="store_true")
    given = parser.parse_args(argv[1:] if argv[:1] == ["build"] else argv)
    if not given.image:
        raise Refused("accepts 1 arg(s), received 0")
    if given.progress not in ("auto", "verbose", "debug"):
        raise Refused(f'unknown progress type: "{given.progress}"')
    if (given.type or ["qcow2"]) != ["qcow2"]:
        raise Refused(f"type {given.type} is not in this stand-in, qcow2 is")
    if given.rootfs not in ("", "ext4", "xfs", "btrfs"):
        raise Refused(f"unsupported root filesystem type: {given.rootfs}")
    if given.chown and not re.fullmatch(r"[0-9]+(:[0-9]+)?", given.chown):
        raise Refused(f"cannot parse --chown {given.chown}")
    return given


def check_container() -> None:
    """See that the container was started the way the builder needs."""
    environment = Path("/run/.containerenv")
    if environment.is_file() and "rootless=1" in environment.read_text():
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


def check_files(tree: Path, rootfs: str) -> str:
    """See that the files make a system; gives the root file system's type."""
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
    return found


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


def build(store: Storage, found: Image, given: argparse.Namespace, custom: Customizations) -> None:
    """Make the disk with poclab's direct builder, which gets the files as a tar file."""
    from poclab import container, events
    from poclab.builders.base import BuildRequest
    from poclab.builders.direct import Direct

    output = Path(given.output)
    # On the output's file system: the container's own may be small.
    work = Path(tempfile.mkdtemp(prefix="osbuild-", dir=output))
    pipelines = iter(range(1, 100))

    def progress(event: events.Event) -> None:
        if event.kind == "step":
            say(f"[{min(next(pipelines), 8)} / 8] {event.text}")
            say(f"  [1 / 1] {event.text}")

    def export(image_id: str, tar: Path) -> None:
        with store.files(found, Path("/run/standin")) as tree:
            image_tar.write(tree, tar, custom.users)

    def inspect(image: str, *, root: bool = False) -> container.ImageInfo:
        return container.ImageInfo(found.id, image)

    container.export = export
    container.inspect = inspect
    try:
        size = max(DEFAULT_DISK, custom.root_size + BESIDE_ROOT)
        request = BuildRequest(
            given.image,
            found.id,
            work,
            work / "log",
            disk_size=size,
            kernel_args=custom.kernel_args,
        )
        with events.listening(progress):
            built = Direct().build(request)
        (output / "qcow2").mkdir(exist_ok=True)
        built.disk.rename(output / "qcow2/disk.qcow2")
        manifest = {"version": "2", "pipelines": [{"name": "image", "stand-in": True}]}
        (output / "manifest-qcow2.json").write_text(json.dumps(manifest) + "\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def give_away(output: Path, owner: str) -> None:
    """Give the output to the caller."""
    uid, _, gid = owner.partition(":")
    for path in (output, *output.rglob("*")):
        os.chown(path, int(uid), int(gid or 0), follow_symlinks=False)


def main() -> int:
    """Run; gives the exit status."""
    # The first process of a container has no default actions.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    from poclab.errors import PoclabError

    try:
        given = arguments(sys.argv[1:])
        check_container()
        if not Path(given.output).is_dir():
            raise Refused(f"cannot ensure ownership: {given.output} is no directory")
        store, image = find_image(given.image)
        custom = blueprint.load(Path("/"))
        debug = given.progress == "debug"
        say("Start progressbar" if debug else "Building")
        say("pulse: Manifest generation step")
        with store.files(image, Path("/run/standin")) as tree:
            check_files(tree, given.rootfs)
        say("msg: Building manifest-qcow2.json")
        say("pulse: Disk image building step")
        build(store, image, given, custom)
        if given.chown:
            give_away(Path(given.output), given.chown)
        say("pulse: Build complete!")
        say(f"msg: Results saved in {given.output}")
        say("Stop progressbar")
    except Refused as error:
        return failed(str(error))
    except PoclabError as error:
        return failed(f"cannot run osbuild: {error.what}; {error.why}")
    except OSError as error:
        return failed(f"cannot run osbuild: {error}")
    return 0


def failed(why: str) -> int:
    """Print the last line, as Go's log package does; gives the exit status."""
    say(time.strftime("%Y/%m/%d %H:%M:%S ") + f"error: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
