"""The image file: how the versions of an image are built, `images/NAME/image.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema

from poclab.core.plaintext import shown
from poclab.model import names
from poclab.model.version import Profile
from poclab.schema import fields, scalars, yaml_source
from poclab.schema.fields import OptionalDiskSize, Strict, Text, choice_schema, leaf, text_schema
from poclab.schema.yaml_source import Document, Fault, Scalar

FILE_NAME = "image.yaml"
KIND = "image file"
BUILDERS = ("auto", "image-builder", "bootc-image-builder", "bootc", "direct")
ROOTFS = ("ext4", "xfs", "btrfs")
BLUEPRINTS = ("blueprint.toml", "blueprint.json", "config.toml", "config.json")

_MAX_ITEMS = 256


@dataclass(frozen=True)
class ImageFile:
    """How an image is built.

    Attributes:
        name: the image's name, which is its directory's.
        directory: where the file lies; the context of the container build.
        description: what the image is for.
        builder: "auto" or the name of a disk builder, see `BUILDERS`.
        containerfile: what to build from, or None when `container` is given.
        container: the container image to take as it is, or None.
        build_args: arguments of the container build; `{tag}` stands for the version's tag.
        rootfs: the root file system, "ext4", "xfs" or "btrfs".
        disk: bytes of the disk, or None for the builder's default.
        kernel_args: kernel arguments beside the builder's own.
        profile: which devices the guest can drive.
        user: the user to log in as over SSH.
        blueprint: the blueprint for the disk builder, or None.
        builder_image: the disk builder's container image, or None for its default.
        builder_args: extra arguments for the disk builder.
    """

    name: str
    directory: Path
    description: str = ""
    builder: str = "auto"
    containerfile: Path | None = None
    container: str | None = None
    build_args: dict[str, str] = field(default_factory=dict)
    rootfs: str = "ext4"
    disk: int | None = None
    kernel_args: tuple[str, ...] = ()
    profile: Profile = Profile.LINUX
    user: str = "root"
    blueprint: Path | None = None
    builder_image: str | None = None
    builder_args: tuple[str, ...] = ()

    def build_args_for(self, tag: str) -> dict[str, str]:
        """The build arguments of a version: `{tag}` is replaced by its tag."""
        return {key: value.replace("{tag}", tag) for key, value in self.build_args.items()}


def _variable(key: object) -> str:
    """Check the name of a build argument; keys come as plain strings."""
    return scalars.variable(Scalar(str(key), True, 0, 0))


_Reference = Annotated[str | None, leaf(scalars.reference), text_schema(scalars.REFERENCE_PATTERN)]
_Beside = Annotated[str | None, leaf(scalars.beside), text_schema(minLength=1)]
_Argument = Annotated[str, leaf(scalars.argument), text_schema(r"\S+")]
_Value = Annotated[
    str, leaf(scalars.text), WithJsonSchema({"type": ["string", "number", "boolean"]})
]
_Variable = Annotated[str, PlainValidator(_variable), text_schema(scalars.VARIABLE_PATTERN)]


class ImageModel(Strict):
    """An image file."""

    description: Text = Field("", description="what the image is for")
    builder: Annotated[str, leaf(scalars.one_of(*BUILDERS)), choice_schema(BUILDERS)] = Field(
        "auto", description="what makes the disk of the container image"
    )
    containerfile: _Beside = Field(
        None, description="the Containerfile; Containerfile when that file is there"
    )
    container: _Reference = Field(
        None, description="a container image to take as it is, in place of a Containerfile"
    )
    build_args: dict[_Variable, _Value] = Field(
        {}, max_length=_MAX_ITEMS, description="arguments of the container build; {tag} is the tag"
    )
    rootfs: Annotated[str, leaf(scalars.one_of(*ROOTFS)), choice_schema(ROOTFS)] = Field(
        "ext4", description="the root file system"
    )
    disk: OptionalDiskSize = Field(
        None, description="the size of the disk; the builder's default when left out"
    )
    kernel_args: list[_Argument] = Field(
        [], max_length=_MAX_ITEMS, description="kernel arguments beside the builder's own"
    )
    profile: Annotated[str, leaf(scalars.one_of(*Profile)), choice_schema(Profile)] = Field(
        Profile.LINUX.value, description="which devices the guest can drive"
    )
    user: Annotated[str, leaf(scalars.user), text_schema(scalars.USER_PATTERN)] = Field(
        "root", description="the user to log in as over SSH"
    )
    blueprint: _Beside = Field(
        None,
        description="the blueprint for the disk builder, TOML or JSON; "
        "blueprint.toml or config.toml (or .json) when that file is there",
    )
    builder_image: _Reference = Field(
        None, description="the disk builder's container image, for a mirror or another version"
    )
    builder_args: list[_Argument] = Field(
        [], max_length=_MAX_ITEMS, description="extra arguments for the disk builder"
    )


def load_image(directory: Path) -> ImageFile:
    """Read the image file of a directory.

    Args:
        directory: the image's directory; its name is the image's.

    Raises:
        UsageError: there is no such file, it cannot be read, or the directory's name can
            name no image.
        Problems: it is no valid image file; all faults are in it.
    """
    path = directory / FILE_NAME
    text = yaml_source.read(path, KIND)
    name = names.check_name("image", directory.absolute().name)
    document = yaml_source.parse(text, str(path), KIND)
    image, faults = fields.validate(ImageModel, document)
    files = _Files(directory, document)
    containerfile = files.pick("containerfile", ("Containerfile",))
    blueprint = files.pick("blueprint", BLUEPRINTS)
    faults += files.faults
    faults += _source_faults(document, containerfile)
    if image is None or faults:
        raise yaml_source.fail(str(path), KIND, faults)
    return ImageFile(
        name=name,
        directory=directory,
        description=image.description,
        builder=image.builder,
        containerfile=containerfile if image.container is None else None,
        container=image.container,
        build_args=dict(image.build_args),
        rootfs=image.rootfs,
        disk=image.disk,
        kernel_args=tuple(image.kernel_args),
        profile=Profile(image.profile),
        user=image.user,
        blueprint=blueprint,
        builder_image=image.builder_image,
        builder_args=tuple(image.builder_args),
    )


def image_json_schema() -> dict[str, object]:
    """The JSON Schema (draft 2020-12) of image files, for editors."""
    return fields.json_schema(ImageModel, "poclab image file")


class _Files:
    """Finds the files that an image file names, and sees that they lie beside it."""

    def __init__(self, directory: Path, document: Document) -> None:
        self.faults: list[Fault] = []
        self._directory = directory
        self._document = document

    def pick(self, key: str, usual: tuple[str, ...]) -> Path | None:
        """The file that a key names, else the first of the usual ones that is there."""
        node, at, depth = yaml_source.locate(self._document.root, (key,))
        if depth == 0 or at is None:
            found = next((name for name in usual if (self._directory / name).exists()), None)
            return self._check(found, node, "") if found else None
        try:
            return self._check(scalars.beside(scalars.scalar(node)), node, key)
        except ValueError:
            return None  # the model complains of it

    def _check(self, name: str, place: yaml_source.Node, key: str) -> Path | None:
        path = self._directory / name
        try:
            inside = path.resolve().is_relative_to(self._directory.resolve())
            regular = path.is_file()
        except (OSError, RuntimeError):  # a name too long, a circle of links
            inside, regular = True, False
        if inside and regular:
            return path
        what = "is no file" if inside else "leads out of the image's directory"
        message = f"{shown(name)} {what}"
        self.faults.append(Fault(place.line, place.column, key, message))
        return None


def _source_faults(document: Document, containerfile: Path | None) -> Iterator[Fault]:
    """See that there is one thing to build from."""
    root = document.root
    keys = root.entries if isinstance(root, yaml_source.MappingNode) else {}
    if "container" in keys:
        for other in ("containerfile", "build_args"):
            if other in keys:
                key = keys[other].key
                yield Fault(key.line, key.column, other, "cannot stand beside container")
    elif "containerfile" not in keys and containerfile is None:
        message = "nothing to build from: there is no Containerfile and no key container"
        yield Fault(root.line, root.column, "", message)
