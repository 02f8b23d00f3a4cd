"""Which builder makes the disk of a container image."""

from __future__ import annotations

import os
from pathlib import Path

from poclab.builders import inspect, osbuild, privileged
from poclab.builders.base import ANACONDA_ISO, GENERIC_ISO, Builder, Output
from poclab.builders.bootc import Bootc
from poclab.builders.direct import Direct
from poclab.builders.osbuild import BIB, IMAGE_BUILDER, Osbuild
from poclab.containers import podman
from poclab.containers.podman import ImageInfo
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.core.process import runner

AUTO = "auto"
NAMES = (AUTO, IMAGE_BUILDER, BIB, Bootc.name, Direct.name)


def named(name: str, user: str | None = None) -> Builder:
    """The builder of a name.

    Raises:
        UsageError: there is none.
    """
    if name in (IMAGE_BUILDER, BIB):
        return Osbuild(name, user)
    if name == Bootc.name:
        return Bootc(user)
    if name == Direct.name:
        return Direct()
    raise UsageError(f"{shown(name)} is no builder", fix=f"choose one of {', '.join(NAMES)}")


def builder_for(
    name: str, image: ImageInfo, *, user: str | None = None, builder_image: str | None = None
) -> tuple[Builder, str]:
    """Choose a builder.

    `auto` goes by what the image is (no bootc image: direct; a bootc image of Debian's family:
    bootc) and by what is there: image-builder of the host, an image of image-builder or of
    bootc-image-builder in root's storage, else the one that the environment names or the image of
    image-builder, from its registry.

    Args:
        name: "auto" or a builder's name.
        image: the container image.
        user: the login that the disk must have.
        builder_image: the builder's container image, or None for its default.

    Returns:
        The builder, and why it is that one, in a few words.

    Raises:
        UsageError: there is no such builder.
    """
    if name != AUTO:
        return named(name, user), "as asked for"
    if image.labels.get(inspect.LABEL) != "1":
        return Direct(), f"the image has no label {inspect.LABEL}=1"
    prefix = podman.sudo_prefix()
    if prefix and runner().which(prefix[0]) is None:
        return Direct(), "builders of bootc images need root, and there is no sudo"
    inside = inspect.peek(image.id)
    if inside.debian_family:
        why = "osbuild cannot make disks of bootc images of Debian's family"
        return (Bootc(user), why) if inside.bootc else (Direct(), f"{why}, and it has no bootc")
    try:
        found, why = _there(builder_image)
    except PoclabError as error:
        return Direct(), f"root's podman does not work: {error.why or error.what}"
    if found:
        return Osbuild(found, user), why
    return (Bootc(user), f"{why}; the image has bootc") if inside.bootc else (Direct(), why)


def for_iso(output: Output | None, name: str, installer: str | None) -> tuple[Output, str]:
    """Which installer to make, and the name of the builder that makes it.

    bootc-image-builder makes one of the distribution's packages; image-builder makes one of a
    container image that installs.

    Args:
        output: what is asked for, or None.
        name: "auto" or a builder's name.
        installer: the container image that installs, or None.

    Raises:
        UsageError: the builder makes no installers.
    """
    found = output or (GENERIC_ISO if installer else ANACONDA_ISO)
    if name == AUTO:
        return found, IMAGE_BUILDER if found.image_builder else BIB
    if name not in (IMAGE_BUILDER, BIB):
        named(name)
        raise UsageError(
            f"{name} makes no installers",
            why="it makes disks alone",
            fix=f"use --builder {BIB} or {IMAGE_BUILDER}",
        )
    return found, name


def _there(builder_image: str | None) -> tuple[str, str]:
    """Find the builder on osbuild that is there, or empty, and why.

    image-builder goes first: bootc-image-builder's repository was archived on 2026-06-18, and its
    program is a part of image-builder since. An image on a registry counts as to be had: only
    podman can tell, and says so when it cannot.
    """
    if builder_image is not None:
        return _of_image(builder_image)
    images = {name: osbuild.builder_image(name) for name in (IMAGE_BUILDER, BIB)}
    if not images[IMAGE_BUILDER]:
        return IMAGE_BUILDER, "it is a bootc image, and this host has image-builder"
    for name, image in images.items():
        if podman.exists(image, root=True):
            return name, f"it is a bootc image, and {shown(image, 200)} is there"
    # None is here: whoever named one means that one.
    named = [name for name in images if os.environ.get(osbuild.VARIABLES[name])]
    for name in named or [IMAGE_BUILDER]:
        if not osbuild.is_local(images[name]):
            return name, f"the image has the label {inspect.LABEL}=1"
    return "", _missing(images[named[0]])


def _of_image(image: str) -> tuple[str, str]:
    """Find the builder in the image that image.yaml names, as far as it is known here."""
    why = f"the image has the label {inspect.LABEL}=1"
    if not podman.exists(image, root=True):
        return ("", _missing(image)) if osbuild.is_local(image) else (BIB, why)
    words = privileged.entrypoint(image)
    own = bool(words) and Path(words[0]).name == IMAGE_BUILDER
    return (IMAGE_BUILDER if own else BIB), why


def _missing(image: str) -> str:
    return f"the builder image {shown(image, 200)} is not in root's storage"
