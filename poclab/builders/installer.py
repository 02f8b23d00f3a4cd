"""The blueprint of an installer: what it asks, what it does by itself, who can log in afterwards.

An installer of Anaconda does what a kickstart says and asks for the rest. The builders on osbuild
put the container image in (`ostreecontainer`) and, unless they are given a kickstart, one of their
own that erases the machine's disks without a question (bootcInstallerKickstartStages in
osbuild/images). poclab hands over that one on request only: what nobody asked for is a kickstart
that leaves the disk to the user.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from poclab.builders import blueprint
from poclab.builders.base import BuildRequest
from poclab.core.errors import UsageError
from poclab.core.plaintext import shown

_MAX_FILE = 1024**2
# The customizations that an installer takes; the others are of disks (supported_options_iso of
# bootc-generic/imagetypes.yaml in image-builder 79.0.0).
_TAKEN = {"fips", "group", "installer", "kernel", "user"}
# The program that takes `iso` too, both the archived one and the one in image-builder.
_TAKES_ISO = "bootc-image-builder"
# Commands that say what to install; the builder adds the one for the container image.
_SOURCES = {
    "bootc", "cdrom", "harddrive", "hmc", "liveimg", "nfs", "ostreecontainer", "ostreesetup", "url",
}  # fmt: skip
_ASKING = """\
# Made by poclab: it says nothing of disks, so that the installer asks for one.
lang en_US.UTF-8
keyboard us
timezone UTC --utc
network --bootproto=dhcp --device=link --activate --onboot=on
"""


def read_kickstart(path: Path) -> str:
    """Read a kickstart file.

    Raises:
        UsageError: it cannot be read, is no text, or says itself what to install.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=f"{error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no kickstart file", why="it is not UTF-8 text") from error
    if len(data) > _MAX_FILE or "\0" in text or not text.strip():
        why = "it is empty" if not text.strip() else "it is too large, or no text"
        raise UsageError(f"{path} is no kickstart file", why=why)
    if found := source_line(text):
        number, command = found
        raise UsageError(
            f"{path}:{number}: {shown(command)} says what to install",
            why="the builder adds the command that installs the container image",
            fix="take the line or section out",
        )
    return text


def source_line(text: str) -> tuple[int, str] | None:
    """The first line that says what to install, and its command; scripts are not looked at."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        word = next(iter(line.split()), "")
        if word == "%end":
            section = ""
        elif word == "%packages" and not section:
            return number, word
        elif re.fullmatch("%[a-z]+", word) and word not in ("%include", "%ksappend"):
            section = section or word
        elif not section and word in _SOURCES:
            return number, word
    return None


def merged(request: BuildRequest, user: str | None, builder: str) -> dict[str, Any]:
    """Merge the blueprint for an installer; empty when there is nothing to say.

    Args:
        request: what to build.
        user: a login to add, or None; a kickstart makes its users itself.
        builder: the name of the program that gets it.

    Raises:
        UsageError: the blueprint cannot be read, is one for disks, or contradicts the kickstart.
    """
    if not request.output.takes_kickstart:
        _only_the_image_says(request)
        return {}
    base = blueprint.merged(replace(request, disk_size=None), None)
    custom = blueprint.table(base, "customizations")
    _check_taken(custom, builder)
    settings = blueprint.table(custom, "installer")
    _set_kickstart(settings, request, str(blueprint.table(custom, "kernel").get("append", "")))
    custom["installer"] = settings
    if "kickstart" in settings:
        _check_alone(custom)
    elif user is not None:
        blueprint.add_user(custom, user)
    return base | {"customizations": custom}


def has_login(merged: dict[str, Any]) -> bool:
    """Whether a blueprint says how to log in: by a kickstart, a password or a key."""
    custom = blueprint.table(merged, "customizations")
    users = [entry for entry in blueprint.listed(custom, "user") if isinstance(entry, dict)]
    known = any(entry.get("password") or entry.get("key") for entry in users)
    return known or "kickstart" in blueprint.table(custom, "installer")


def asking(kernel_args: str) -> str:
    """The kickstart of an installer that asks for the disk.

    Args:
        kernel_args: kernel arguments of the installed system, separated by blanks.
    """
    # A kickstart is read line by line, quoted or not: a line break would begin another command.
    kernel_args = " ".join(kernel_args.split())
    loader = f"bootloader --append={quote(kernel_args)}\n" if kernel_args else ""
    return _ASKING + loader


def _only_the_image_says(request: BuildRequest) -> None:
    for what, given in (
        ("--kickstart", request.kickstart is not None),
        ("--unattended", request.unattended),
        ("--blueprint", request.blueprint is not None),
    ):
        if given:
            raise UsageError(
                f"a {request.output.name} takes no {what}",
                why="what it asks and does is up to the installer's container image",
                fix="put it there, or use --type bootc-installer",
            )


def _check_taken(custom: dict[str, Any], builder: str) -> None:
    if "iso" in custom and builder != _TAKES_ISO:
        raise UsageError(
            f"{builder} does not support customizations.iso",
            why=f"only {_TAKES_ISO} does",
            fix=f"leave it out, or use --builder {_TAKES_ISO}",
        )
    if wrong := sorted(custom.keys() - _TAKEN - {"iso"}):
        raise UsageError(
            f"an installer takes no customizations.{wrong[0]}",
            why="that is for disks",
            fix="give it a blueprint without, and put the rest in the Containerfile or the "
            "kickstart",
        )


def _set_kickstart(settings: dict[str, Any], request: BuildRequest, kernel_args: str) -> None:
    """Settle what the installer does by itself: the option's word, the blueprint's, else ask."""
    own = "kickstart" in settings
    if request.kickstart is not None:
        if own:
            raise UsageError(
                "there are two kickstarts",
                why="--kickstart and the blueprint's customizations.installer.kickstart",
                fix="keep one of them",
            )
        settings["kickstart"] = {"contents": request.kickstart}
        own = True
    unattended = request.unattended or bool(settings.get("unattended"))
    if unattended and own:
        raise UsageError(
            "an unattended installer takes no kickstart",
            why="a kickstart says itself what is not asked",
            fix="leave out one of the two",
        )
    if unattended:
        settings["unattended"] = True
    elif not own:
        settings["kickstart"] = {"contents": asking(kernel_args)}


def _check_alone(custom: dict[str, Any]) -> None:
    """See that nothing is beside a kickstart that the builders refuse there (kickstart.go)."""
    beside = [f"customizations.{key}" for key in ("user", "group") if custom.get(key)]
    if blueprint.table(custom, "installer").get("sudo-nopasswd"):
        beside.append("customizations.installer.sudo-nopasswd")
    if beside:
        raise UsageError(
            f"{beside[0]} cannot be beside a kickstart",
            why="the builder refuses both; an installer that asks for the disk has a kickstart too",
            fix="write it as a line of the --kickstart file, or use --unattended",
        )
