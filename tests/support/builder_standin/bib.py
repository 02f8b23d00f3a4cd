"""bootc-image-builder; runs inside its container as /usr/bin/bootc-image-builder."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

from tests.support.builder_standin import blueprint, iso, shared
from tests.support.builder_standin.blueprint import Customizations, Refused
from tests.support.builder_standin.shared import Parser, say
from tests.support.builder_standin.storage import Image, Storage

DEPRECATED = ("local", "tls-verify")
TYPES = ("qcow2", "anaconda-iso", "bootc-installer")
FAILED = "cannot build manifest: "
VERSION = "build_revision: 0123abc\nbuild_time: 2026-01-01T00:00:00Z\nbuild_tainted: false"


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
    parser.add_argument("--installer-payload-ref", default="")
    parser.add_argument("--log-level", default="error")
    parser.add_argument("--verbose", "-v", action="store_true")
    given = parser.parse_args(argv[1:] if argv[:1] == ["build"] else argv)
    if not given.image:
        raise Refused("accepts 1 arg(s), received 0")
    if given.progress not in ("auto", "verbose", "debug"):
        raise Refused(f'unknown progress type: "{given.progress}"')
    given.type = given.type or ["qcow2"]
    if given.type not in ([name] for name in TYPES):
        raise Refused(f"type {given.type} is not in this stand-in, {' and '.join(TYPES)} are")
    if ("bootc-installer" in given.type) != bool(given.installer_payload_ref):
        raise Refused("cannot build manifest: no installer payload bootc ref set")
    if given.rootfs not in ("", "ext4", "xfs", "btrfs"):
        raise Refused(f"unsupported root filesystem type: {given.rootfs}")
    if given.chown and not re.fullmatch(r"[0-9]+(:[0-9]+)?", given.chown):
        raise Refused(f"cannot parse --chown {given.chown}")
    return given


def build(
    store: Storage, found: Image, payload: Image, given: argparse.Namespace, custom: Customizations
) -> None:
    """Make the disk or the ISO, and say how far it is."""
    output = Path(given.output)
    (kind,) = given.type
    pipelines = iter(range(1, 100))

    def step(text: str) -> None:
        shared.say_step(min(next(pipelines), 8), text)

    if kind == "qcow2":
        size = max(shared.DEFAULT_DISK, custom.root_size + shared.BESIDE_ROOT)
        with shared.disk_of(
            store,
            found,
            output,
            step,
            size=size,
            kernel_args=custom.kernel_args,
            users=custom.users,
        ) as disk:
            (output / "qcow2").mkdir(exist_ok=True)
            disk.rename(output / "qcow2/disk.qcow2")
    else:
        name = given.installer_payload_ref or given.image
        installer = found if kind == "bootc-installer" else None
        made = iso.make(
            store,
            payload,
            name,
            output,
            step,
            rootfs=given.rootfs,
            custom=custom,
            installer=installer,
        )
        (output / "bootiso").mkdir(exist_ok=True)
        made.rename(output / "bootiso/install.iso")
    manifest = {"version": "2", "pipelines": [{"name": "image", "stand-in": True}]}
    (output / f"manifest-{kind}.json").write_text(json.dumps(manifest) + "\n")


def give_away(output: Path, owner: str) -> None:
    """Give the output to the caller."""
    uid, _, gid = owner.partition(":")
    for path in (output, *output.rglob("*")):
        os.chown(path, int(uid), int(gid or 0), follow_symlinks=False)


def program(argv: list[str]) -> None:
    """Do what the arguments say."""
    if argv[:1] == ["version"]:
        if argv[1:]:
            raise Refused(f"unknown flag: {argv[1]}")
        print(VERSION)
        return
    given = arguments(argv)
    shared.check_container()
    if not Path(given.output).is_dir():
        raise Refused(f"cannot ensure ownership: {given.output} is no directory")
    store, image = shared.find_image(given.image, shared.BIB)
    payload = image
    if given.installer_payload_ref:
        payload = shared.find_image(given.installer_payload_ref, shared.BIB)[1]
    found = blueprint.load(Path("/"))
    custom = blueprint.read(found, given.type[0])
    say("Start progressbar" if given.progress == "debug" else "Building")
    say("pulse: Manifest generation step")
    shared.check_files(store, image, given.rootfs, FAILED)
    # Without an end of line, as the real one.
    print(blueprint.unsupported(found, given.type[0]), end="", file=sys.stderr, flush=True)
    say("msg: Done generating manifest")
    say(f"msg: Building manifest-{given.type[0]}.json")
    say("pulse: Disk image building step")
    build(store, image, payload, given, custom)
    if given.chown:
        give_away(Path(given.output), given.chown)
    say("msg: Build complete!")
    say(f"msg: Results saved in {given.output}")
    say("Stop progressbar")


def main() -> int:
    """Run; gives the exit status. The last line goes through Go's log package."""
    return shared.run(program, lambda: time.strftime("%Y/%m/%d %H:%M:%S "), "cannot run osbuild: ")
