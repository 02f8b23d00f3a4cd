"""image-builder; runs inside its container as /usr/bin/image-builder, or on this host.

On the host, `host_bin/` goes first on PATH.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.support.builder_standin import blueprint, iso, shared
from tests.support.builder_standin.blueprint import Refused
from tests.support.builder_standin.shared import Parser

VERSION = "79"
# What `build --help` says of them, in cobra's form.
OPTIONS = {
    "blueprint": "string         filename of a blueprint to customize an image",
    "bootc-default-fs": "string   default filesystem to use for the bootc install (e.g. ext4)",
    "bootc-installer-payload-ref": "string   bootc installer payload ref",
    "bootc-ref": "string         bootc container ref",
    "image-size": "size          override the default image size (e.g. 1 GiB)",
    "output-dir": "string        artifact output directory",
    "output-name": "string       set specific output basename",
}
TYPES = ("qcow2", "bootc-installer", "bootc-generic-iso")
PROGRESS = ("auto", "verbose", "debug", "file")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line of `build`."""
    parser = Parser(prog="image-builder", allow_abbrev=False, add_help=False)
    parser.add_argument("type", nargs="?")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--progress", default="auto")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--verbose", "-v", action="store_true")
    given = parser.parse_args(argv)
    if given.type is None:
        raise Refused("accepts 1 arg(s), received 0")
    if given.progress not in PROGRESS:
        raise Refused(f'unknown progress type: "{given.progress}"')
    if given.type == "anaconda-iso":
        raise Refused(
            'image type bootc "anaconda-iso" is not supported with image-builder, please consider '
            'switching to "bootc-installer" or use bootc-image-builder'
        )
    if given.type not in TYPES:
        raise Refused(f"type {given.type} is not in this stand-in, {', '.join(TYPES)} are")
    if given.type == "bootc-installer" and not given.bootc_installer_payload_ref:
        raise Refused("no installer payload bootc ref set")
    if not given.bootc_ref:
        raise Refused("a build without --bootc-ref is not in this stand-in")
    if given.bootc_default_fs not in ("", "ext4", "xfs", "btrfs"):
        kind = given.bootc_default_fs
        failed = "failed to set default rootfs for bootc distro"
        raise Refused(f"{failed}: unknown or unsupported filesystem type name: {kind}")
    return given


class FileProgress:
    """Replaces a file as a whole for each step; says nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = 0

    def __call__(self, text: str) -> None:
        self._done = min(self._done + 1, 8)
        inner = {"message": text, "done": 1, "total": 1}
        data = {"message": "Pipeline image", "done": self._done, "total": 8, "subprogress": inner}
        temporary = self._path.with_name(f"{self._path.name}.1")
        temporary.write_text(json.dumps(data))
        temporary.rename(self._path)


class LineProgress:
    """Prints lines for each step."""

    def __init__(self) -> None:
        self._done = 0

    def __call__(self, text: str) -> None:
        self._done = min(self._done + 1, 8)
        shared.say_step(self._done, text)


def build(given: argparse.Namespace) -> None:
    """Make the disk or the ISO."""
    if shared.CONTAINER.exists():
        shared.check_container()
    store, image = shared.find_image(given.bootc_ref, shared.IMAGE_BUILDER)
    output = Path(given.output_dir or ".")
    output.mkdir(parents=True, exist_ok=True)
    ending = "qcow2" if given.type == "qcow2" else "iso"
    name = given.output_name.removesuffix(f".{ending}") or "disk"
    custom = blueprint.Customizations()
    if given.blueprint:
        found = json.loads(Path(given.blueprint).read_text())
        custom = blueprint.read(found, given.type)
        if wrong := blueprint.unsupported(found, given.type):
            raise Refused(f"Warnings during manifest creation:\n{wrong}")
    shared.check_files(store, image, given.bootc_default_fs)
    file = FileProgress(output / f"{name}.progress")
    step = file if given.progress == "file" else LineProgress()
    if given.type == "qcow2":
        with shared.disk_of(
            store,
            image,
            output,
            step,
            size=max(shared.DEFAULT_DISK, int(given.image_size or 0) + shared.BESIDE_ROOT),
            kernel_args=custom.kernel_args,
            users=custom.users,
        ) as disk:
            disk.rename(output / f"{name}.qcow2")
    else:
        ref = given.bootc_installer_payload_ref
        payload = shared.find_image(ref, shared.IMAGE_BUILDER)[1] if ref else image
        made = iso.make(
            store, payload, ref, output, step, rootfs=given.bootc_default_fs, installer=image,
            # A bootc-generic-iso has no use for a blueprint.
            custom=custom if given.type == "bootc-installer" else None,
        )  # fmt: skip
        made.rename(output / f"{name}.iso")
    print(f"Image build successful: {output / name}.{ending}")


def program(argv: list[str]) -> None:
    """Do what the arguments say."""
    if argv[:1] == ["version"]:
        told = {"version": VERSION, "commit": "0123abc", "dependencies": {"osbuild": "170"}}
        print(json.dumps({"image-builder": told}, indent=2))
    elif argv == ["build", "--help"]:
        print("Build the given image-type, e.g. qcow2\n\nUsage:")
        print("  image-builder build <image-type> [flags]\n\nFlags:")
        for name, text in OPTIONS.items():
            print(f"      --{name} {text}")
    elif argv[:1] == ["build"]:
        build(arguments(argv[1:]))
    else:
        raise Refused(f'unknown command "{" ".join(argv[:1])}" for "image-builder"')


def main() -> int:
    """Run; gives the exit status."""
    return shared.run(program)


if __name__ == "__main__":
    sys.exit(main())
