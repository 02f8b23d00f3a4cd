"""image-builder; runs inside its container as /usr/bin/image-builder, or on this host.

On the host, `host_bin/` goes first on PATH.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.support.builder_standin import blueprint, shared
from tests.support.builder_standin.blueprint import Refused
from tests.support.builder_standin.shared import Parser, say

VERSION = "76"
PROGRESS = ("auto", "verbose", "debug", "file")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line of `build`."""
    parser = Parser(prog="image-builder", allow_abbrev=False, add_help=False)
    parser.add_argument("type", nargs="?")
    for name in ("bootc-ref", "bootc-default-fs", "blueprint", "output-dir", "output-name"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--progress", default="auto")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--verbose", "-v", action="store_true")
    given = parser.parse_args(argv)
    if given.type is None:
        raise Refused("accepts 1 arg(s), received 0")
    if given.progress not in PROGRESS:
        raise Refused(f'unknown progress type: "{given.progress}"')
    if given.type != "qcow2":
        raise Refused(f"type {given.type} is not in this stand-in, qcow2 is")
    if not given.bootc_ref:
        raise Refused("a build without --bootc-ref is not in this stand-in")
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
    """Prints a line for each step."""

    def __init__(self) -> None:
        self._done = 0

    def __call__(self, text: str) -> None:
        self._done = min(self._done + 1, 8)
        say(f"[{self._done} / 8] {text}")


def build(given: argparse.Namespace) -> None:
    """Make the disk."""
    if shared.CONTAINER.exists():
        shared.check_container()
    store, image = shared.find_image(given.bootc_ref)
    output = Path(given.output_dir or ".")
    output.mkdir(parents=True, exist_ok=True)
    name = given.output_name.removesuffix(".qcow2") or "disk"
    custom = blueprint.Customizations()
    if given.blueprint:
        custom = blueprint.read(json.loads(Path(given.blueprint).read_text()))
    shared.check_files(store, image, given.bootc_default_fs)
    file = FileProgress(output / f"{name}.progress")
    with shared.disk_of(
        store,
        image,
        output,
        file if given.progress == "file" else LineProgress(),
        size=max(shared.DEFAULT_DISK, custom.root_size + shared.BESIDE_ROOT),
        kernel_args=custom.kernel_args,
        users=custom.users,
    ) as disk:
        disk.rename(output / f"{name}.qcow2")
    print(f"Image build successful: {output / name}.qcow2")


def program(argv: list[str]) -> None:
    """Do what the arguments say."""
    if argv[:1] == ["version"]:
        told = {"version": VERSION, "commit": "0123abc", "dependencies": {"osbuild": "170"}}
        print(json.dumps({"image-builder": told}, indent=2))
    elif argv[:1] == ["build"]:
        build(arguments(argv[1:]))
    else:
        raise Refused(f'unknown command "{" ".join(argv[:1])}" for "image-builder"')


def main() -> int:
    """Run; gives the exit status."""
    return shared.run(program)


if __name__ == "__main__":
    sys.exit(main())
