"""Which builder makes the disk of a container image."""

from __future__ import annotations

from poclab import container
from poclab.builders import bib
from poclab.builders.base import Builder
from poclab.builders.bib import BootcImageBuilder
from poclab.builders.direct import Direct
from poclab.container import ImageInfo
from poclab.errors import PoclabError, UsageError
from poclab.names import shown
from poclab.run import runner

AUTO = "auto"
NAMES = (AUTO, BootcImageBuilder.name, Direct.name)


def builder_for(
    name: str, image: ImageInfo, *, user: str | None = None, builder_image: str | None = None
) -> tuple[Builder, str]:
    """Choose a builder.

    `auto` is bootc-image-builder for an image that says it is a bootc image, where root and
    the builder's image can be had, and direct for any other.

    Args:
        name: "auto", "bootc-image-builder" or "direct".
        image: the container image.
        user: the login that the disk must have.
        builder_image: the builder's container image, or None for its default.

    Returns:
        The builder, and why it is that one, in a few words.

    Raises:
        UsageError: there is no such builder.
    """
    if name == BootcImageBuilder.name:
        return BootcImageBuilder(user), "as asked for"
    if name == Direct.name:
        return Direct(), "as asked for"
    if name != AUTO:
        raise UsageError(f"{shown(name)} is no builder", fix=f"choose one of {', '.join(NAMES)}")
    if image.labels.get(bib.LABEL) != "1":
        return Direct(), f"the image has no label {bib.LABEL}=1"
    obstacle = _obstacle(bib.builder_image(builder_image))
    if obstacle:
        return Direct(), obstacle
    return BootcImageBuilder(user), f"the image has the label {bib.LABEL}=1"


def _obstacle(image: str) -> str:
    """Why bootc-image-builder cannot run here, or an empty string.

    An image on a registry counts as to be had: only podman can tell, and says so when it cannot.
    """
    prefix = container.sudo_prefix()
    if prefix and runner().which(prefix[0]) is None:
        return "bootc-image-builder needs root, and there is no sudo"
    if not bib.is_local(image):
        return ""
    try:
        there = container.exists(image, root=True)
    except PoclabError as error:
        return f"bootc-image-builder needs root's podman: {error.why or error.what}"
    return "" if there else f"the builder image {shown(image, 200)} is not in root's storage"
