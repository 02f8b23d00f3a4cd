"""What a bootc container image is: its label, its distribution, what it would fail for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poclab.builders.base import BuildRequest
from poclab.builders.kernel import find_kernel
from poclab.containers import podman
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.core.process import CommandFailed, runner
from poclab.core.tar_reader import TarError, TarReader

if TYPE_CHECKING:
    from poclab.builders.rootfs import Tree

LABEL = "containers.bootc"
BOOTC = "usr/bin/bootc"
_OS_RELEASE = ("usr/lib/os-release", "etc/os-release")
_MAX_TEXT = 65536
_ACCOUNTS = ("etc/passwd", "usr/lib/passwd")


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


@dataclass(frozen=True)
class Inside:
    """What was found in an image.

    Attributes:
        users: the logins it has.
        os_release: the text of its os-release.
        bootc: whether it has the program bootc.
    """

    users: frozenset[str] = frozenset()
    os_release: str = ""
    bootc: bool = False

    @property
    def debian_family(self) -> bool:
        """Whether it is Debian or made of it (os-release(5): ID, ID_LIKE)."""
        found = fields(self.os_release)
        names = {found.get("ID", ""), *found.get("ID_LIKE", "").split()}
        return bool(names & {"debian", "ubuntu"})


def look_inside(request: BuildRequest) -> Inside:
    """Look for what a builder would miss after minutes: kernel and initramfs.

    Raises:
        PoclabError: one is missing, or podman failed.
    """
    from poclab.builders import rootfs

    tar = request.workdir / "precheck.tar"
    try:
        podman.export(request.image_id, tar)
        events.step("look for kernel and initramfs", image=request.image)
        members = rootfs.listing(tar)
        find_kernel(rootfs.kinds(members, "file", "hardlink"), bootc=True)
        tree = rootfs.Tree(tar, members)
        texts = {name: _text(tree, name) for name in (*_OS_RELEASE, *_ACCOUNTS)}
    finally:
        tar.unlink(missing_ok=True)
    passwd = "\n".join(texts[name] for name in _ACCOUNTS)
    users = frozenset(line.partition(":")[0] for line in passwd.splitlines() if line)
    os_release = next((texts[name] for name in _OS_RELEASE if texts[name]), "")
    return Inside(users, os_release, BOOTC in members)


def _text(tree: Tree, name: str) -> str:
    """The beginning of a regular file, or an empty string."""
    member = tree.members.get(name)
    if member is None or member.kind != "file":
        return ""
    return tree.read(name, _MAX_TEXT).decode(errors="replace")


def peek(image_id: str) -> Inside:
    """Look at the little that decides which builder to take; the users are not looked for.

    Nothing of the image is executed, and what cannot be found counts as not there.
    """
    name = podman.container_name("peek")
    argv = [*podman.podman(), "create", "--pull=never", "--network=none", "--name", name]
    try:
        if runner().run([*argv, "--", image_id, "/sbin/init"], check=False).code != 0:
            return Inside()
        bootc = _copied(name, BOOTC) is not None
        texts = [text for file in _OS_RELEASE if (text := _copied(name, file)) is not None]
        return Inside(os_release=texts[0].decode(errors="replace") if texts else "", bootc=bootc)
    finally:
        podman.remove_container(name)


class _Enough(Exception):
    """What was looked for has been read; the command that prints it may end."""


def _copied(name: str, file: str) -> bytes | None:
    """The beginning of a regular file of a container; None when it has none of that name.

    It comes as a tar stream and is read here: no file of an image is made on this host.
    """
    found: bytes | None = None
    try:
        with runner().reading([*podman.podman(), "cp", f"{name}:/{file}", "-"]) as stream:
            reader = TarReader(stream)
            member = next(iter(reader), None)
            if member is not None and member.kind == "file":
                found = reader.read(_MAX_TEXT)
            raise _Enough
    except (_Enough, CommandFailed, TarError):
        return found


def fields(text: str) -> dict[str, str]:
    """The fields of an os-release."""
    return dict(re.findall(r"""^([A-Z_]+)=["']?([^"'\n]*)""", text, re.MULTILINE))


def check_os_release(text: str) -> None:
    """See that os-release names the distribution in a way osbuild takes.

    It makes a distribution's name of ID and VERSION_ID, which has to be MAJOR or MAJOR.MINOR, and
    wants a NAME too (validateOSRelease in pkg/bib/osinfo of image-builder 79.0.0).

    Raises:
        PoclabError: one of them is missing or of another form.
    """
    found = fields(text)
    if not found.get("ID"):
        raise PoclabError(
            "the container image has no os-release with an ID",
            fix="base it on a bootc image, or use builder: direct",
        )
    if "NAME" not in found:
        raise PoclabError(
            "the container image's os-release has no NAME",
            why="the builder refuses it",
            fix="set NAME in /usr/lib/os-release, or use builder: direct",
        )
    version = found.get("VERSION_ID", "")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", version):
        raise PoclabError(
            "the container image's os-release has no VERSION_ID that the builder takes",
            why=f"it is {shown(version)}" if version else "there is none",
            fix="set VERSION_ID to a number in /usr/lib/os-release, or use builder: direct",
        )
