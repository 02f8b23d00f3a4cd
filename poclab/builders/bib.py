"""The bootc-image-builder builder: a disk from a bootc image by its own builder container.

The contract is the one of bootc-image-builder's README and main.go (the archived
osbuild/bootc-image-builder and the binary of the same name that image-builder ships):
arguments, mounts, the output tree `qcow2/disk.qcow2`, progress on stderr, and a last line
that begins with `error: `. Nothing deprecated (`--local`, `--tls-verify`) is passed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poclab import container, events
from poclab.builders import bib_blueprint, bib_errors
from poclab.builders.base import BuildRequest, Built
from poclab.builders.bib_progress import Lines
from poclab.builders.kernel import find_kernel
from poclab.errors import PoclabError, UsageError
from poclab.names import shown
from poclab.run import CommandFailed, runner
from poclab.units import GIB, format_size

DEFAULT_IMAGE = "quay.io/centos-bootc/bootc-image-builder:latest"
IMAGE_VARIABLE = "POCLAB_BIB_IMAGE"
LABEL = "containers.bootc"
# Where podman inside the builder looks for images, whatever the host's storage is called.
_STORAGE = "/var/lib/containers/storage"
# Options poclab sets itself, and the two that are deprecated.
_OWN = ("--type", "--rootfs", "--chown", "--progress", "--output", "--config", "-v", "--verbose")
_DEPRECATED = ("--local", "--tls-verify")
_OUTPUT = "bib-output"
_TIMEOUT = 4 * 3600.0


class BootcImageBuilder:
    """Makes disks of bootc images with bootc-image-builder in a privileged container.

    Attributes:
        user: a login to have the builder make when the image lacks it, or None.
    """

    name = "bootc-image-builder"

    def __init__(self, user: str | None = None) -> None:
        self.user = user

    def check(self) -> None:
        """See that podman is there and root can be had.

        Raises:
            PoclabError: podman or sudo is missing, or sudo refuses.
        """
        for program in ["podman", *container.sudo_prefix()]:
            if runner().which(program) is None:
                raise PoclabError(
                    f"{program} is not installed", fix=f"install the package {program}"
                )
        if container.sudo_prefix():
            _check_sudo()

    def build(self, request: BuildRequest) -> Built:
        """Build the disk; see `Builder.build`.

        Raises:
            PoclabError: the image is no bootable bootc image, or the builder failed.
            UsageError: the blueprint or the arguments cannot be used.
        """
        check_args(request.builder_args)
        _note_size(request)
        _remove_leftovers(request.workdir)
        found = container.inspect(request.image_id)
        check_label(request.image, found.labels)
        user = self._missing_user(_look_inside(request))
        blueprint = bib_blueprint.merged(request, user)
        container.copy_to_root(request.image_id, request.image, request.workdir)
        # The builder goes by name: what it finds must be what was built.
        if container.inspect(request.image, root=True).id != request.image_id:
            raise PoclabError(f"{request.image} became another image meanwhile", fix="build again")
        return _run(request, blueprint)

    def _missing_user(self, image: _Inside) -> str | None:
        if self.user in (None, "root", *image.users):
            return None
        return self.user


# --- before minutes are spent -----------------------------------------------------------


def _check_sudo() -> None:
    """See that sudo gives root, while a password can still be asked for.

    `sudo -v` alone would not do: it wants a password of whoever may run podman, but not
    everything, without one.
    """
    if runner().run(["sudo", "-n", "podman", "--version"], check=False, timeout=60).code == 0:
        return
    result = runner().run(["sudo", "-v"], check=False, timeout=300)
    if result.code != 0:
        raise PoclabError(
            "bootc-image-builder needs root, and sudo does not give it",
            why=result.last_line,
            fix="run poclab as root, or use builder: direct, which needs no root",
        )


def check_label(image: str, labels: dict[str, str]) -> None:
    """See that an image says of itself that it is a bootc image.

    Raises:
        PoclabError: it does not.
    """
    if labels.get(LABEL) != "1":
        raise PoclabError(
            f"{shown(image, 200)} is not a bootc image",
            why=f"it has no label {LABEL}=1",
            fix=f"write LABEL {LABEL}=1 in the Containerfile if its base is one, "
            "or use builder: direct",
        )


def check_args(args: tuple[str, ...]) -> None:
    """See that extra arguments neither repeat poclab's own nor are deprecated.

    Raises:
        UsageError: one does or is.
    """
    for arg in args:
        option = arg.partition("=")[0]
        if option in _DEPRECATED:
            raise UsageError(f"builder_args: {option} is deprecated", fix="leave it out")
        if option in _OWN:
            raise UsageError(
                f"builder_args: {option} is set by poclab",
                fix="use rootfs, disk and blueprint of image.yaml instead",
            )


def _note_size(request: BuildRequest) -> None:
    """Tell the user when the builder's smallest disk is larger than the one asked for."""
    if request.disk_size is not None and request.disk_size < bib_blueprint.DEFAULT_DISK:
        events.note(
            f"bootc-image-builder makes no disk below {bib_blueprint.DEFAULT_DISK // GIB} GiB: "
            f"{format_size(request.disk_size)} were asked for"
        )


@dataclass(frozen=True)
class _Inside:
    users: frozenset[str]


def _look_inside(request: BuildRequest) -> _Inside:
    """Look for what the builder would miss after minutes: kernel, initramfs, VERSION_ID."""
    from poclab.builders import rootfs

    tar = request.workdir / "precheck.tar"
    try:
        container.export(request.image_id, tar)
        events.step("look for kernel and initramfs", image=request.image)
        members = rootfs.listing(tar)
        names = [name for name, member in members.items() if member.isreg() or member.islnk()]
        find_kernel(names, bootc=True)
        texts = {}
        with rootfs.opened(tar) as archive:
            for name in ("usr/lib/os-release", "etc/os-release", "etc/passwd", "usr/lib/passwd"):
                member = members.get(name)
                file = archive.extractfile(member) if member and member.isreg() else None
                texts[name] = file.read(65536).decode(errors="replace") if file else ""
    finally:
        tar.unlink(missing_ok=True)
    check_os_release(texts["usr/lib/os-release"] or texts["etc/os-release"])
    passwd = texts["etc/passwd"] + "\n" + texts["usr/lib/passwd"]
    return _Inside(frozenset(line.partition(":")[0] for line in passwd.splitlines() if line))


def check_os_release(text: str) -> None:
    """See that os-release names the distribution in a way the builder takes.

    It makes a distribution's name of ID and VERSION_ID, which has to be MAJOR or MAJOR.MINOR.

    Raises:
        PoclabError: one of them is missing or of another form.
    """
    fields = dict(re.findall(r"""^([A-Z_]+)=["']?([^"'\n]*)""", text, re.MULTILINE))
    if not fields.get("ID"):
        raise PoclabError(
            "the container image has no os-release with an ID",
            fix="base it on a bootc image, or use builder: direct",
        )
    version = fields.get("VERSION_ID", "")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", version):
        raise PoclabError(
            "the container image's os-release has no VERSION_ID that the builder takes",
            why=f"it is {shown(version)}" if version else "there is none",
            fix="set VERSION_ID to a number in /usr/lib/os-release, or use builder: direct",
        )


# --- the run ----------------------------------------------------------------------------


def builder_image(request_image: str | None = None) -> str:
    """The builder's container image: image.yaml's, else $POCLAB_BIB_IMAGE, else upstream's."""
    return request_image or os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE


def is_local(image: str) -> bool:
    """Whether an image can be in local storage only: it has podman's name for no registry."""
    return image.startswith("localhost/") or bool(re.fullmatch(r"(sha256:)?[0-9a-f]{64}", image))


@dataclass(frozen=True)
class Mounts:
    """What the builder's container gets of the host.

    Attributes:
        output: the directory for its results.
        storage: root's container storage (podman's graph root).
        config: the blueprint as JSON, or None.
    """

    output: Path
    storage: Path
    config: Path | None = None


def argv(
    request: BuildRequest, mounts: Mounts, *, name: str, uid: int, gid: int, root: bool
) -> list[str]:
    """The podman command that runs the builder.

    Args:
        request: what to build.
        mounts: what the container gets of the host.
        name: the container's name.
        uid: who gets the output.
        gid: that user's group.
        root: whether the caller is root already; sudo goes before the command if not.

    Raises:
        UsageError: a directory's name cannot be mounted.
    """
    image = builder_image(request.builder_image)
    pull = "never" if is_local(image) else "newer"
    volumes = [f"{mounts.output}:/output", f"{mounts.storage}:{_STORAGE}"]
    if str(mounts.storage) != _STORAGE:
        # podman's database in the storage names its own path; it has to be found there too.
        volumes.append(f"{mounts.storage}:{mounts.storage}")
    if mounts.config:
        volumes.append(f"{mounts.config}:/config.json:ro")
    for path in (mounts.output, mounts.storage, mounts.config):
        if ":" in str(path or ""):
            raise UsageError(
                f"podman cannot mount {shown(str(path), 200)}", why="its path holds a colon"
            )
    return [
        *([] if root else ["sudo"]),
        *("podman", "run", "--rm", "--name", name, "--privileged", f"--pull={pull}"),
        *("--security-opt", "label=type:unconfined_t"),
        *(word for volume in volumes for word in ("-v", volume)),
        image,
        *("--type", "qcow2", "--rootfs", request.rootfs),
        *("--chown", f"{uid}:{gid}", "--progress=debug"),
        *request.builder_args,
        request.image,
    ]


def _run(request: BuildRequest, blueprint: dict[str, Any]) -> Built:
    output = request.workdir.absolute() / _OUTPUT
    output.mkdir(mode=0o755)
    mounts = Mounts(output, _graph_root())
    if blueprint:
        config = request.workdir.absolute() / "bib-config.json"
        config.write_text(json.dumps(blueprint, indent=1) + "\n")
        mounts = replace(mounts, config=config)
    name = container.container_name("bib")
    root = os.geteuid() == 0
    command = argv(request, mounts, name=name, uid=os.getuid(), gid=os.getgid(), root=root)
    lines = Lines()
    image = builder_image(request.builder_image)
    with _in_use(output):
        try:
            events.step("run bootc-image-builder", container=name, builder=image)
            code = runner().stream(command, lines.see, log=request.log, timeout=_TIMEOUT)
            if code != 0:
                raise bib_errors.explained(lines.error, lines.tail, code, request.log, image)
            disk = _take(output, request)
            return Built(disk, _inputs(request, blueprint, image))
        finally:
            container.remove_container(name, root=True)
            _clean(output)


@contextmanager
def _in_use(output: Path) -> Iterator[None]:
    """Mark an output tree as in use; the mark goes with the process, however it ends."""
    fd = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_leftovers(workdir: Path) -> None:
    """Remove root's part of what killed builds of this user left: containers and output trees.

    The pool sweeps its work directories itself, but an ordinary user cannot delete root's files.
    """
    for name in container.remove_leftovers(root=True):
        events.debug(f"removed container {name}, left by an interrupted build")
    for output in workdir.absolute().parent.glob(f"*/{_OUTPUT}"):
        try:
            with _unused(output):
                _clean(output)
                output.parent.rmdir()
        except OSError as error:
            events.debug(f"{output} stays: {error.strerror}")


@contextmanager
def _unused(output: Path) -> Iterator[None]:
    fd = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _graph_root() -> Path:
    argv = [*container.podman(root=True), "info", "--format", "json"]
    try:
        store = json.loads(runner().run(argv, timeout=120).stdout)["store"]
        return Path(str(store["graphRoot"]))
    except CommandFailed as error:
        raise PoclabError("podman info failed as root", why=error.result.last_line) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PoclabError("podman info printed what poclab cannot read") from error


def _take(output: Path, request: BuildRequest) -> Path:
    """Move the disk out of the builder's output tree."""
    made = output / "qcow2" / "disk.qcow2"
    if made.is_symlink() or not made.is_file():
        raise PoclabError(
            f"bootc-image-builder left no qcow2/disk.qcow2 (log: {request.log})",
            fix="see what the log says; the builder image may be another program",
        )
    target = request.workdir / "disk.qcow2"
    events.step("take the disk", disk=str(target))
    made.rename(target)
    return target


def _clean(output: Path) -> None:
    """Remove the output tree, which the builder makes as root and hands over at its end only."""
    shutil.rmtree(output, ignore_errors=True)
    if output.exists() and container.sudo_prefix():
        argv = ["sudo", "rm", "-r", "-f", "--one-file-system", "--", str(output)]
        result = runner().run(argv, check=False, timeout=300)
        if result.code != 0:
            events.warning(f"{output} is left behind: {result.last_line}")


def _inputs(request: BuildRequest, blueprint: dict[str, Any], image: str) -> dict[str, str]:
    inputs = {"rootfs": request.rootfs, "builder_image": image}
    try:
        found = container.inspect(image, root=True)
        inputs["builder_digest"] = found.digest or found.id
    except PoclabError as error:
        # Somebody may have removed it since; the disk is no worse for that.
        events.debug(f"the builder's digest is not known: {error.what}")
    if blueprint:
        inputs["blueprint"] = json.dumps(blueprint, sort_keys=True, separators=(",", ":"))
    if request.disk_size is not None:
        inputs["disk_size"] = str(request.disk_size)
    if request.kernel_args:
        inputs["kernel_args"] = " ".join(request.kernel_args)
    if request.builder_args:
        inputs["builder_args"] = " ".join(request.builder_args)
    return inputs
