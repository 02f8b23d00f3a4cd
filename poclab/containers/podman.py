"""podman, as far as building disks needs it: build, look at, flatten and hand over images."""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from poclab.core import events, free_space, hints
from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.core.process import CommandFailed, Result, runner

PREFIX = "poclab-"
# Images are gigabytes and disks are slow; nothing here should ever take as long as this.
_LONG = 3600.0


@dataclass(frozen=True)
class ImageInfo:
    """A container image in local storage.

    Attributes:
        id: its ID, 64 hexadecimal digits.
        name: the name it was asked for by.
        digest: its manifest's digest, `sha256:HEX`, or an empty string.
        labels: its labels.
        size: bytes of its layers as stored.
    """

    id: str
    name: str
    digest: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    size: int = 0


def sudo_prefix() -> list[str]:
    """What goes before a command that needs root: nothing for root, else `sudo`."""
    return [] if os.geteuid() == 0 else ["sudo"]


def podman(*, root: bool = False) -> list[str]:
    """The beginning of a podman command, in this user's storage or in root's."""
    return [*(sudo_prefix() if root else []), "podman"]


def inspect(image: str, *, root: bool = False) -> ImageInfo:
    """Look at an image in local storage; nothing is pulled.

    Args:
        image: a name or an ID.
        root: look in root's storage.

    Raises:
        PoclabError: there is no such image, or podman does not work.
    """
    argv = [*podman(root=root), "image", "inspect", "--format", "json", "--", image]
    result = runner().run(argv, check=False)
    if result.code != 0:
        if not exists(image, root=root):
            raise PoclabError(
                f"there is no container image {shown(image, 200)} in "
                f"{'root' if root else 'this user'}'s storage",
                fix=f"build it, or fetch it with: {' '.join(podman(root=root))} pull IMAGE",
            )
        raise _explained(result)
    try:
        entry = json.loads(result.stdout)[0]
        return ImageInfo(
            id=str(entry["Id"]).removeprefix("sha256:"),
            name=image,
            digest=str(entry.get("Digest") or ""),
            labels={str(k): str(v) for k, v in (entry.get("Labels") or {}).items()},
            size=int(entry.get("Size") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise PoclabError("podman image inspect printed what poclab cannot read") from error


def exists(image: str, *, root: bool = False) -> bool:
    """Whether local storage has the image.

    Raises:
        PoclabError: podman does not work.
    """
    argv = [*podman(root=root), "image", "exists", "--", image]
    result = runner().run(argv, check=False)
    # podman-image-exists(1): 0 found, 1 not found, 125 something else went wrong.
    # sudo ends with 1 too when it refuses, but says why; podman's own warnings are log lines.
    words = [line for line in result.stderr.splitlines() if line and not line.startswith("time=")]
    if result.code not in (0, 1) or (result.code == 1 and words):
        raise _explained(result)
    return result.code == 0


def build(
    context: Path,
    containerfile: Path,
    name: str,
    build_args: Mapping[str, str],
    on_line: Callable[[str], None],
    log: Path,
    no_cache: bool = False,
) -> ImageInfo:
    """Build a container image.

    The isolation, the storage and the registries are podman's own business: its environment
    variables and configuration files reach it unchanged.

    Args:
        context: the directory that `COPY` takes from.
        containerfile: the Containerfile.
        name: the name the image gets.
        build_args: `--build-arg` values.
        on_line: called for each line podman prints.
        log: the file that gets all of them.
        no_cache: build every layer anew.

    Returns:
        The image that was built, whatever else got its name meanwhile.

    Raises:
        PoclabError: the build failed; the message has podman's last error and the log's path.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX) as scratch:
        iidfile = Path(scratch) / "iid"
        argv = [*podman(), "build", "--tag", name, "--file", str(containerfile.absolute())]
        argv += ["--iidfile", str(iidfile)]
        argv += ["--no-cache"] if no_cache else []
        for key, value in sorted(build_args.items()):
            argv += ["--build-arg", f"{key}={value}"]
        argv += ["--", str(context.absolute())]
        last = _LastError()

        def line(text: str) -> None:
            last.see(text)
            on_line(text)

        code = runner().stream(argv, line, log=log)
        if code != 0:
            raise PoclabError(
                f"podman build of {name} failed (log: {log})",
                why=last.text or f"exit status {code}",
                fix=_fix_for(last.text)
                or f"correct {shown(str(containerfile), 200)}; the log has what its steps printed",
            )
        image_id = iidfile.read_text().strip().removeprefix("sha256:")
    found = inspect(image_id)
    return ImageInfo(found.id, name, found.digest, found.labels, found.size)


class _LastError:
    """Remembers the line that says why: the last `Error...` line, or else the last one."""

    def __init__(self) -> None:
        self._error = ""
        self._line = ""

    def see(self, text: str) -> None:
        text = text.strip()
        if text.lower().startswith("error"):
            self._error = text
        elif text:
            self._line = text

    @property
    def text(self) -> str:
        return (self._error or self._line)[:400]


def container_name(purpose: str) -> str:
    """A name for a container of this process, by which `leftovers` finds it later.

    It holds the process's ID and start time (proc(5): field 22 of /proc/PID/stat), so that
    a container whose maker was killed can be told from one that is in use.
    """
    pid = os.getpid()
    return f"{PREFIX}{purpose}-{pid}-{_started(pid)}-{secrets.token_hex(3)}"


@contextmanager
def _never_run(image_id: str, purpose: str) -> Iterator[str]:
    """A container that is there for its image's files: never run, removed whatever happens."""
    name = container_name(purpose)
    events.step("read the image's files", image=image_id, container=name)
    # An image without a command cannot be made a container of; this one is never run.
    argv = [*podman(), "create", "--pull=never", "--network=none", "--name", name]
    try:
        _run([*argv, "--", image_id, "/sbin/init"])
        yield name
    finally:
        remove_container(name)


def export(image_id: str, tar: Path) -> None:
    """Write an image's file system, flattened, as a tar file.

    How large that becomes is the image's to say: its sparse files have no holes in there.

    Args:
        image_id: its ID.
        tar: the file to make, in a work directory.

    Raises:
        PoclabError: podman failed, or there is no room.
    """
    what, place = "the container image's files", tar.parent.parent
    free_space.check(tar.parent, what, place=place)
    last = _LastError()
    with _never_run(image_id, "export") as name:
        argv = [*podman(), "export", "--output", str(tar.absolute()), name]
        watch = free_space.watch(tar.parent, what, place=place)
        code = runner().stream(argv, last.see, timeout=_LONG, watch=watch)
    if code != 0:
        raise _explained(Result(tuple(argv), code, "", last.text))


@contextmanager
def exported(image_id: str) -> Iterator[IO[bytes]]:
    """An image's file system, flattened, as a tar file that is read as it comes.

    Raises:
        PoclabError: podman failed.
    """
    with _never_run(image_id, "files") as name:
        try:
            with runner().reading([*podman(), "export", name]) as stream:
                yield stream
        except CommandFailed as error:
            raise _explained(error.result) from error


def save_layout(image_id: str, directory: Path) -> str:
    """Write an image as an OCI image layout, its layers as they are stored.

    Compressed layers would be other bytes with each release of podman, and the image would have
    another digest than in the storage.

    Args:
        image_id: its ID, not a name: the layout then holds one image without a tag.
        directory: the directory to make.

    Returns:
        The digest of the image's manifest, `sha256:HEX`.

    Raises:
        PoclabError: podman failed, or made no such layout.
    """
    events.step("write the container image out", image=image_id)
    argv = [*podman(), "save", "--quiet", "--format", "oci-dir", "--uncompressed"]
    _run([*argv, "--output", str(directory.absolute()), image_id])
    try:
        # OCI image specification, image-layout.md: index.json is an image index.
        (entry,) = json.loads((directory / "index.json").read_bytes())["manifests"]
        digest = str(entry["digest"])
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise ValueError(digest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PoclabError("podman save made what poclab cannot read") from error
    return digest


def remove_container(name: str, *, root: bool = False) -> None:
    """Remove a container, running or not; that there is none is fine."""
    argv = [*podman(root=root), "rm", "--force", "--ignore", "--time=0", name]
    with suppress(PoclabError):
        runner().run(argv, check=False, timeout=120)


def leftovers(*, root: bool = False) -> list[str]:
    """Containers whose poclab process is gone.

    Raises:
        PoclabError: podman does not work.
    """
    argv = [*podman(root=root), "ps", "--all", "--filter", f"name=^{PREFIX}"]
    names = _run([*argv, "--format", "{{.Names}}"]).stdout.split()
    return sorted(name for name in names if _is_stale(name))


def remove_leftovers(*, root: bool = False) -> list[str]:
    """Remove what `leftovers` finds.

    Returns:
        The names of the containers that were there.
    """
    found = leftovers(root=root)
    for name in found:
        remove_container(name, root=root)
    return found


def copy_to_root(image_id: str, name: str, workdir: Path) -> None:
    """Bring an image of this user's storage into root's, once.

    Args:
        image_id: its ID; root's storage having that ID means there is nothing to do.
        name: the name it gets there.
        workdir: a directory with room for the image.

    Raises:
        PoclabError: podman or sudo failed, or the image changed its ID on the way.
    """
    if os.geteuid() == 0:
        return
    if not exists(image_id, root=True):
        events.step("copy the image into root's container storage", image=image_id)
        with tempfile.TemporaryDirectory(prefix="save-", dir=workdir) as scratch:
            archive = Path(scratch).absolute() / "image.tar"
            _run([*podman(), "save", "--output", str(archive), image_id])
            _run([*podman(root=True), "load", "--input", str(archive)])
        if not exists(image_id, root=True):
            raise PoclabError(
                "the image got another ID in root's container storage",
                fix="build it as root: sudo podman build ..., or: "
                + hints.command("sudo", "podman", "pull", name),
            )
    _run([*podman(root=True), "tag", image_id, name])


_STALE = re.compile(re.escape(PREFIX) + r"[a-z]+-([0-9]+)-([0-9]+)-[0-9a-f]+")


def _is_stale(name: str) -> bool:
    match = _STALE.fullmatch(name)
    return match is not None and _started(int(match[1])) != int(match[2])


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the program's name in parentheses and may hold anything.
    return int(stat.rpartition(")")[2].split()[19])


def _run(argv: list[str]) -> Result:
    try:
        return runner().run(argv, timeout=_LONG)
    except CommandFailed as error:
        raise _explained(error.result) from error


def _explained(result: Result) -> PoclabError:
    why = result.last_line
    words = [word for word in result.argv if not word.startswith("-")]
    words = words[words.index("podman") :] if "podman" in words else words
    return PoclabError(f"{' '.join(words[:2])} failed", why=why[:400], fix=_fix_for(result.stderr))


# Texts of podman, buildah, containers/storage and sudo; the first that occurs counts.
_FIXES = (
    (
        r"newuidmap|newgidmap|no subuid ranges|insufficient UIDs or GIDs|/etc/subuid",
        "give your user subordinate IDs: sudo usermod --add-subuids 100000-165535 "
        "--add-subgids 100000-165535 USER (package uidmap or shadow-utils), then: "
        "podman system migrate",
    ),
    (r"no space left on device", "make room on the disk: podman system df, podman image prune"),
    (
        r"initializing source docker:|pinging container registry|dial tcp|no such host"
        r"|i/o timeout|connection refused|short-name",
        "check the image's name and that its registry can be reached, or load it first: "
        "podman load --input FILE",
    ),
    (r"unauthorized|authentication required|denied: ", "log in first: podman login REGISTRY"),
    (r"a password is required|a terminal is required", "run sudo -v first, or run poclab as root"),
    (r"not in the sudoers|may not run sudo", "run poclab as a user who may use sudo, or as root"),
    (r"RLIMIT_NOFILE|RLIMIT_NPROC", "raise the limits: ulimit -n, ulimit -u"),
)


def _fix_for(text: str) -> str:
    for pattern, fix in _FIXES:
        if re.search(pattern, text, re.IGNORECASE):
            return fix
    return ""
