"""The builders on osbuild: bootc-image-builder and its successor image-builder.

Which of the two a container image holds is asked of it (its entrypoint, what `version`
prints), never guessed from its name: the archived bootc-image-builder, the one of the same
name that image-builder ships and image-builder itself all go by several names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poclab.builders import blueprint, commands, errors, inspect, installer, privileged
from poclab.builders.base import BuildRequest, Built, Output, common_inputs
from poclab.builders.commands import Setup
from poclab.builders.progress import Lines, Progress, watching
from poclab.containers import podman
from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.core.process import CommandFailed, Result, runner
from poclab.core.units import GIB, format_size

BIB = "bootc-image-builder"
IMAGE_BUILDER = "image-builder"
BIB_IMAGE = "quay.io/centos-bootc/bootc-image-builder:latest"
IMAGE_BUILDER_IMAGE = "ghcr.io/osbuild/image-builder-cli:latest"
BIB_VARIABLE = "POCLAB_BIB_IMAGE"
IMAGE_BUILDER_VARIABLE = "POCLAB_IMAGE_BUILDER_IMAGE"
VARIABLES = {BIB: BIB_VARIABLE, IMAGE_BUILDER: IMAGE_BUILDER_VARIABLE}
_DEPRECATED = ("--local", "--tls-verify")
# `--progress=file` and `--image-size` are there from this version of image-builder on.
_PROGRESS_FILE = 75
# The root's least size, whatever it is called (manifestForDisk in pkg/distro/generic).
_IMAGE_SIZE = "--image-size"
_MAX_HELP = 256 * 1024


Argv = Callable[[BuildRequest, Setup], list[str]]


@dataclass(frozen=True)
class Contract:
    """How a program is run.

    Attributes:
        argv: the command.
        type: its name for an output; empty when it cannot make it.
        result: where it leaves an output, below its output directory.
        own: options that poclab sets itself.
    """

    argv: Argv
    type: Callable[[Output], str]
    result: Callable[[Output], str]
    own: tuple[str, ...]


CONTRACTS = {
    BIB: Contract(
        commands.bib,
        lambda output: output.bib,
        lambda output: output.bib_file,
        (
            *("--type", "--rootfs", "--chown", "--progress", "--output", "--config"),
            *("--installer-payload-ref", "-v", "--verbose"),
        ),
    ),
    IMAGE_BUILDER: Contract(
        commands.image_builder,
        lambda output: output.image_builder,
        lambda output: output.file,
        (
            *("--bootc-ref", "--bootc-default-fs", "--blueprint", "--output-dir"),
            *("--bootc-installer-payload-ref", "--output-name", "--progress", "-v", "--verbose"),
        ),
    ),
}


@dataclass(frozen=True)
class Program:
    """A builder that was found.

    Attributes:
        kind: which contract it keeps, "bootc-image-builder" or "image-builder".
        image: its container image, or an empty string for a program of the host.
        version: what it says of its version, one line.
    """

    kind: str
    image: str = ""
    version: str = ""


class Osbuild:
    """Makes disks and installers of bootc images with osbuild, by one of the programs around it.

    Args:
        name: "bootc-image-builder" or "image-builder".
        user: a login to have the builder make when the image lacks it, or None.
    """

    def __init__(self, name: str, user: str | None = None) -> None:
        self.name = name
        self.user = user

    def check(self, request: BuildRequest) -> None:
        """See that podman is there and root can be had; see `Builder.check`."""
        check_args(request.builder_args, self.name)
        check_size(request)
        check_output(request, self.name)
        privileged.check(self.name, "podman")

    def inputs(self, request: BuildRequest) -> dict[str, str]:
        """What decides about the disk; see `Builder.inputs`."""
        found = common_inputs(request)
        if request.blueprint:
            # Its digest alone: there may be password hashes in it.
            text = json.dumps(blueprint.load(request.blueprint), sort_keys=True)
            found["blueprint"] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        if image := builder_image(self.name, request.builder_image):
            if podman.exists(image, root=True):
                found["builder_digest"] = digest(image)
        else:
            found["builder_version"] = host_program().version
        return found

    def build(self, request: BuildRequest) -> Built:
        """Build the disk; see `Builder.build`.

        Raises:
            PoclabError: the image is no bootable bootc image, or the builder failed.
            UsageError: the blueprint cannot be used.
        """
        _note_size(self.name, request)
        privileged.remove_leftovers(request.workdir)
        inspect.check_label(request.image, podman.inspect(request.image_id).labels)
        inside = inspect.look_inside(request)
        inspect.check_os_release(inside.os_release)
        merged = self._blueprint(request, inside)
        if request.installer is not None:
            _bring_installer(request.installer, request.workdir)
        program = self._program(request)
        merged, root_size = _sized(request, merged, program)
        podman.copy_to_root(request.image_id, request.image, request.workdir)
        # The builder goes by name: what it finds must be what was built.
        if podman.inspect(request.image, root=True).id != request.image_id:
            raise PoclabError(f"{request.image} became another image meanwhile", fix="build again")
        return _run(request, merged, program, root_size)

    def _blueprint(self, request: BuildRequest, inside: inspect.Inside) -> dict[str, Any]:
        user = None if self.user in (None, "root", *inside.users) else self.user
        if not request.output.iso:
            return blueprint.merged(request, user)
        if inside.debian_family:
            raise PoclabError(
                "there is no installer of Debian's family",
                why="osbuild makes those of Fedora, CentOS Stream and RHEL alone",
                fix="install with the container itself: bootc install to-disk",
            )
        merged = installer.merged(request, user, self.name)
        if request.output.takes_kickstart and not installer.has_login(merged):
            events.warning(
                "nobody is given a password or a key: only logins of the image itself will work"
            )
        return merged

    def _program(self, request: BuildRequest) -> Program:
        image = builder_image(self.name, request.builder_image)
        if not image:
            return host_program()
        found = probe(fetched(image, request.log))
        if found.kind != self.name:
            events.note(f"{image} holds {found.kind}, not {self.name}: run as what it is")
            check_args(request.builder_args, found.kind)
            check_output(request, found.kind)
        return found


# --- before minutes are spent -----------------------------------------------------------


def check_args(args: tuple[str, ...], name: str = BIB) -> None:
    """See that extra arguments neither repeat poclab's own nor are deprecated.

    Raises:
        UsageError: one does or is.
    """
    for arg in args:
        option = arg.partition("=")[0]
        if option in _DEPRECATED:
            raise UsageError(f"builder_args: {option} is deprecated", fix="leave it out")
        if option in CONTRACTS[name].own:
            raise UsageError(
                f"builder_args: {option} is set by poclab",
                fix="use rootfs, disk and blueprint of image.yaml instead",
            )


def check_size(request: BuildRequest) -> None:
    """Check that the disk's size is given once.

    Raises:
        UsageError: if builder_args has it too.
    """
    given = {arg.partition("=")[0] for arg in request.builder_args}
    if _IMAGE_SIZE in given and blueprint.wants_size(request):
        raise UsageError(
            "the disk's size is set twice",
            why=f"image.yaml has disk, and builder_args has {_IMAGE_SIZE}",
            fix="keep one of them",
        )


def check_output(request: BuildRequest, name: str) -> None:
    """See that a program makes the output, and that it has the installer it wants.

    Raises:
        UsageError: it does not, or has not.
    """
    output = request.output
    if not CONTRACTS[name].type(output):
        other = BIB if output.bib else IMAGE_BUILDER
        raise UsageError(f"{name} makes no {output.name}", fix=f"use --builder {other}")
    if output.installer and request.installer is None:
        raise UsageError(
            f"a {output.name} needs an installer",
            why="it is made of two container images: one that installs, one that is installed",
            fix="name the first one: --installer IMAGE",
        )
    if request.installer is not None and not output.installer:
        raise UsageError(
            f"a {output.name} takes no --installer",
            why="its installer is made of the distribution's packages",
            fix="leave it out, or use --type bootc-generic-iso",
        )


def _bring_installer(image: str, workdir: Path) -> None:
    """See that the installer's image is a bootc image, and bring it into root's storage.

    Raises:
        PoclabError: it is not there, is none, or became another one meanwhile.
    """
    root = not podman.exists(image)
    info = podman.inspect(image, root=root)
    inspect.check_label(image, info.labels)
    if not root:
        podman.copy_to_root(info.id, image, workdir)
    if podman.inspect(image, root=True).id != info.id:
        raise PoclabError(f"{shown(image, 200)} is another image in root's storage")


def _note_size(name: str, request: BuildRequest) -> None:
    """Tell the user when the builder's smallest disk is larger than the one asked for."""
    if request.disk_size is not None and request.disk_size < blueprint.DEFAULT_DISK:
        events.note(
            f"{name} makes no disk below {blueprint.DEFAULT_DISK // GIB} GiB: "
            f"{format_size(request.disk_size)} were asked for"
        )


# --- which program it is ----------------------------------------------------------------


def builder_image(name: str, request_image: str | None = None) -> str:
    """The builder's container image: image.yaml's, else the variable's, else upstream's.

    Empty where image-builder is a program of this host and nobody named an image.
    """
    if name == BIB:
        return request_image or os.environ.get(BIB_VARIABLE) or BIB_IMAGE
    named = request_image or os.environ.get(IMAGE_BUILDER_VARIABLE)
    if named or runner().which(IMAGE_BUILDER) is None:
        return named or IMAGE_BUILDER_IMAGE
    return ""


def is_local(image: str) -> bool:
    """Whether an image can be in local storage only: it has podman's name for no registry."""
    return image.startswith("localhost/") or bool(re.fullmatch(r"(sha256:)?[0-9a-f]{64}", image))


def fetched(image: str, log: Path) -> str:
    """The builder's image in root's storage, the newest one where a registry can be asked.

    Raises:
        PoclabError: it is not there and cannot be pulled.
    """
    there = podman.exists(image, root=True)
    lines = Lines()
    code = 125
    if not is_local(image):
        events.step("fetch the builder's container image", image=image)
        argv = [*podman.podman(root=True), "pull", "--", image]
        code = runner().stream(argv, lines.see, log=log)
        if code != 0 and there:
            events.debug(f"{image} is used as it is here: {lines.said}")
    if code != 0 and not there:
        lines.see("" if lines.tail else f"{image}: image not known in root's container storage")
        raise errors.explained(lines, code, log, image)
    return image


def digest(image: str) -> str:
    """The digest of a builder's image in root's storage, or its ID where it has none."""
    info = podman.inspect(image, root=True)
    return info.digest or info.id


def probe(image: str) -> Program:
    """Ask a container image in root's storage which builder it holds.

    Raises:
        PoclabError: none that poclab knows.
    """
    words = privileged.entrypoint(image)
    kind = Path(words[0]).name if words else ""
    # image-builder prints JSON when told to; bootc-image-builder has no such option.
    form = () if kind == BIB else ("--format", "json")
    done = _asked(image, "version", *form)
    if done.code != 0 and form:
        done = _asked(image, "version")
    said, version = told_version(done.stdout if done.code == 0 else "")
    if kind not in CONTRACTS:
        kind = said
    if kind not in CONTRACTS:
        raise PoclabError(
            f"{shown(image, 200)} holds no disk builder that poclab knows",
            why=f"its entrypoint is {shown(' '.join(words))}" if words else "it has no entrypoint",
            fix="name an image of bootc-image-builder or image-builder as builder_image",
        )
    return Program(kind, image, version)


def _asked(image: str, *words: str) -> Result:
    """Run a builder's program in its container, without anything of this host."""
    name = podman.container_name("probe")
    argv = [*podman.podman(root=True), "run", "--rm", "--pull=never", "--network=none"]
    try:
        return runner().run([*argv, "--name", name, image, *words], check=False, timeout=120)
    finally:
        podman.remove_container(name, root=True)


def takes_size(program: Program) -> bool:
    """Ask image-builder whether it takes a size for the disk.

    Its `build --help` tells, and no version: one that was built from its main branch can call
    itself version 1. That costs the start of a container, so it is asked only when it matters.
    """
    words = ("build", "--help")
    if program.image:
        done = _asked(program.image, *words)
    else:
        done = runner().run([IMAGE_BUILDER, *words], check=False, timeout=60)
    said = (done.stdout + done.stderr)[:_MAX_HELP]
    return re.search(rf"^ +{_IMAGE_SIZE}\b", said, re.MULTILINE) is not None


def host_program() -> Program:
    """The image-builder of this host.

    Raises:
        PoclabError: it is not there.
    """
    try:
        done = runner().run([IMAGE_BUILDER, "version", "--format", "json"], timeout=60)
    except CommandFailed:
        done = runner().run([IMAGE_BUILDER, "version"], check=False, timeout=60)
    return Program(IMAGE_BUILDER, "", told_version(done.stdout)[1] or done.last_line[:200])


def told_version(text: str) -> tuple[str, str]:
    """Which program printed its version, and the version in one line; empty where not known."""
    try:
        told: Any = json.loads(text)
        return IMAGE_BUILDER, str(told[IMAGE_BUILDER]["version"])
    except (ValueError, KeyError, TypeError):
        pass
    if text.startswith(f"{IMAGE_BUILDER}:"):  # YAML, its other form
        found = re.search(r"^ +version: *[\"']?([^\"'\n]+)", text, re.MULTILINE)
        return IMAGE_BUILDER, found[1].strip() if found else ""
    found = re.search(r"^build_revision: *(\S+)", text, re.MULTILINE)
    return (BIB, found[1]) if found else ("", "")


def progress_form(program: Program) -> str:
    """The value for `--progress`: a file where the program has that, else parseable lines."""
    number = re.match(r"v?([0-9]+)", program.version)
    newest = program.kind == IMAGE_BUILDER and number and int(number[1]) >= _PROGRESS_FILE
    return "file" if newest else "debug"


# --- the run ----------------------------------------------------------------------------


def _sized(
    request: BuildRequest, merged: dict[str, Any], program: Program
) -> tuple[dict[str, Any], int | None]:
    """Settle how a program is told the disk's size: the blueprint, and the root's least size.

    image-builder refuses the blueprint's `filesystem` for disks (since November 2025), where
    bootc-image-builder warns of it and does it. Both take that of `disk`.

    Raises:
        PoclabError: if this image-builder takes no size.
    """
    if not blueprint.wants_size(request) or request.disk_size is None:
        return merged, None
    if program.kind == BIB or blueprint.lays_out(merged):
        return blueprint.sized(merged, request.disk_size), None
    if takes_size(program):
        return merged, request.disk_size - blueprint.BESIDE_ROOT
    which = program.image or "the image-builder of this host"
    raise PoclabError(
        f"{which} cannot make a disk above {format_size(blueprint.DEFAULT_DISK)}",
        why=f"it has no {_IMAGE_SIZE} (version {program.version or 'unknown'})",
        fix=f"use image-builder {_PROGRESS_FILE} or later, or --builder {BIB}; "
        "or leave `disk` out: a VM's disk can be larger than its version's",
    )


def _run(
    request: BuildRequest, merged: dict[str, Any], program: Program, root_size: int | None
) -> Built:
    contract = CONTRACTS[program.kind]
    target = request.workdir / request.output.file
    with privileged.output_tree(request.workdir) as output:
        setup = Setup(
            output,
            privileged.graph_root(),
            podman.container_name("osbuild"),
            program.image,
            config=_config(request, merged),
            owner=f"{os.getuid()}:{os.getgid()}",
            root=os.geteuid() == 0,
            progress=progress_form(program),
            root_size=root_size,
        )
        lines, code = _watched(request, program, setup)
        if code != 0:
            where = program.image or program.kind
            raise errors.explained(lines, code, request.log, where, program.kind)
        made = output / contract.result(request.output)
        privileged.take(made, target, program.kind, request.log)
    known = {"program": program.kind, "program_version": program.version}
    if program.image:
        # The newest one was fetched for this build, so it may not be the one of `inputs`.
        known |= {"builder_image": program.image, "builder_digest": digest(program.image)}
    return Built(target, known)


def _config(request: BuildRequest, merged: dict[str, Any]) -> Path | None:
    if not merged:
        return None
    config = request.workdir.absolute() / "blueprint.json"
    config.write_text(json.dumps(merged, indent=1) + "\n")
    return config


def _watched(request: BuildRequest, program: Program, setup: Setup) -> tuple[Lines, int]:
    """Run the program and tell how far it is; gives what it said and its exit status."""
    command = CONTRACTS[program.kind].argv(request, setup)
    progress = Progress(request.expected)
    lines = Lines(progress)
    file = setup.output / Path(request.output.file).with_suffix(".progress")
    watch = watching(file, progress) if setup.progress == "file" else nullcontext()
    events.step(f"run {program.kind}", container=setup.name, builder=program.image)
    try:
        with watch:
            code = runner().stream(command, lines.see, log=request.log, timeout=privileged.TIMEOUT)
    finally:
        if program.image:
            podman.remove_container(setup.name, root=True)
    return lines, code
