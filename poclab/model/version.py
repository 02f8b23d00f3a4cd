"""Versions of images, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from poclab.core.errors import UsageError
from poclab.core.plaintext import shown
from poclab.model.names import check_name, check_tag


@dataclass(frozen=True, order=True)
class Ref:
    """A version's name: `shop:v2`."""

    image: str
    tag: str

    def __str__(self) -> str:
        return f"{self.image}:{self.tag}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read `IMAGE:TAG`.

        Raises:
            UsageError: a part is missing or is not a valid name.
        """
        image, colon, tag = text.partition(":")
        if not colon:
            raise UsageError(f"{shown(text)} names no tag", fix=f"write {shown(text + ':TAG')}")
        return cls(check_name("image", image), check_tag(tag))


class Profile(StrEnum):
    """Which devices a guest can drive."""

    LINUX = "linux"
    WINDOWS = "windows"
    LEGACY = "legacy"


class Transport(StrEnum):
    """How a guest gets a container image; bootc's words."""

    OCI = "oci"
    REGISTRY = "registry"


@dataclass(frozen=True)
class Origin:
    """Where a version comes from.

    Attributes:
        kind: "built" (from a container image, can be built again), "imported" or "committed"
            (precious).
        source: the container image's name, the imported file's, or the VM as `LAB/VM`.
        digest: the container image's digest, or the imported file's: `ALGORITHM:HEX`.
        builder: the disk builder's name for a built one.
        inputs: what else went in (builder version, rootfs, size, kernel arguments ...).
    """

    kind: str
    source: str
    digest: str = ""
    builder: str = ""
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """A version of an image, as its manifest says.

    Attributes:
        ref: its name.
        digest: that of the base disk's file, `blake3:HEX`.
        size: bytes of the base disk's file.
        virtual_size: bytes the guest sees.
        profile: which devices the guest can drive.
        origin: where it comes from.
        created: when it was published.
        user: the user to log in as over SSH.
        labels: free text by key.
        parents: digests of the bases it is layered on, nearest first; none when it stands alone.
        protected: whether it must not be removed.
    """

    ref: Ref
    digest: str
    size: int
    virtual_size: int
    profile: Profile
    origin: Origin
    created: str
    user: str = "root"
    labels: dict[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    protected: bool = False
