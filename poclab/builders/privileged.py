"""What the builders that need root share: sudo, root's storage, the output tree."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poclab.containers import podman
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.process import CommandFailed, runner

OUTPUT = "builder-output"
TIMEOUT = 4 * 3600.0


def check(builder: str, *programs: str) -> None:
    """See that programs are there and root can be had.

    Raises:
        PoclabError: one or sudo is missing, or sudo refuses.
    """
    for program in [*programs, *podman.sudo_prefix()]:
        if runner().which(program) is None:
            raise PoclabError(f"{program} is not installed", fix=f"install the package {program}")
    if podman.sudo_prefix():
        _check_sudo(builder)


def _check_sudo(builder: str) -> None:
    """See that sudo gives root, while a password can still be asked for.

    `sudo -v` alone would not do: it wants a password of whoever may run podman, but not
    everything, without one.
    """
    if runner().run(["sudo", "-n", "podman", "--version"], check=False, timeout=60).code == 0:
        return
    result = runner().run(["sudo", "-v"], check=False, timeout=300)
    if result.code != 0:
        raise PoclabError(
            f"{builder} needs root, and sudo does not give it",
            why=result.last_line,
            fix="run poclab as root; builder: direct needs no root, and makes disks alone",
        )


def graph_root() -> Path:
    """Where root's podman keeps its images.

    Raises:
        PoclabError: podman does not work.
    """
    argv = [*podman.podman(root=True), "info", "--format", "json"]
    try:
        store = json.loads(runner().run(argv, timeout=120).stdout)["store"]
        return Path(str(store["graphRoot"]))
    except CommandFailed as error:
        raise PoclabError("podman info failed as root", why=error.result.last_line) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PoclabError("podman info printed what poclab cannot read") from error


def entrypoint(image: str, *, root: bool = True) -> tuple[str, ...]:
    """The entrypoint of an image in local storage (OCI image configuration).

    Raises:
        PoclabError: it is not there, or podman does not work.
    """
    argv = [*podman.podman(root=root), "image", "inspect", "--format", "json", "--", image]
    try:
        config = json.loads(runner().run(argv).stdout)[0].get("Config") or {}
        words = config.get("Entrypoint") or []
        return tuple(str(word) for word in ([words] if isinstance(words, str) else words))
    except CommandFailed as error:
        raise PoclabError("podman image inspect failed", why=error.result.last_line) from error
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise PoclabError("podman image inspect printed what poclab cannot read") from error


@contextmanager
def output_tree(workdir: Path) -> Iterator[Path]:
    """A directory for a builder's results inside the block; root's files in it go at its end."""
    output = workdir.absolute() / OUTPUT
    output.mkdir(mode=0o755)
    with in_use(output):
        try:
            yield output
        finally:
            clean(output)


@contextmanager
def in_use(output: Path) -> Iterator[None]:
    """Mark an output tree as in use; the mark goes with the process, however it ends."""
    fd = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove_leftovers(workdir: Path) -> None:
    """Remove root's part of what killed builds of this user left: containers and output trees.

    The pool sweeps its work directories itself, but an ordinary user cannot delete root's files.
    """
    for name in podman.remove_leftovers(root=True):
        events.debug(f"removed container {name}, left by an interrupted build")
    for output in workdir.absolute().parent.glob(f"*/{OUTPUT}"):
        try:
            with _unused(output):
                release_loops(output)
                clean(output)
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


def release_loops(output: Path) -> None:
    """Detach the loop devices that a killed `bootc install` left on files of an output tree."""
    for file in output.glob("*.raw"):
        argv = [*podman.sudo_prefix(), "losetup", "--noheadings", "--output", "NAME"]
        found = runner().run([*argv, "--associated", str(file)], check=False, timeout=60)
        for device in found.stdout.split():
            events.debug(f"detach {device}, left by an interrupted build")
            argv = [*podman.sudo_prefix(), "losetup", "--detach", device]
            runner().run(argv, check=False, timeout=60)


def clean(output: Path) -> None:
    """Remove the output tree, which a builder fills as root and hands over at its end only."""
    shutil.rmtree(output, ignore_errors=True)
    if output.exists() and podman.sudo_prefix():
        argv = ["sudo", "rm", "-r", "-f", "--one-file-system", "--", str(output)]
        result = runner().run(argv, check=False, timeout=300)
        if result.code != 0:
            events.warning(f"{output} is left behind: {result.last_line}")


def take(made: Path, target: Path, builder: str, log: Path) -> Path:
    """Move a disk out of the output tree, and make it the caller's.

    Raises:
        PoclabError: it is not there, or sudo refuses.
    """
    if made.is_symlink() or not made.is_file():
        raise PoclabError(
            f"{builder} left no {made.name} (log: {log})",
            fix="see what the log says; the builder may be another program",
        )
    events.step("take the disk", disk=str(target))
    if made.stat().st_uid != os.geteuid():
        owner = f"{os.getuid()}:{os.getgid()}"
        runner().run(
            [*podman.sudo_prefix(), "chown", "--no-dereference", "--", owner, str(made)],
            timeout=60,
        )
    made.rename(target)
    return target
