"""The versions there are, as flat rows, and who uses them."""

from __future__ import annotations

from dataclasses import dataclass

from poclab.disks.extents import tally
from poclab.model import volumes
from poclab.model.version import Version
from poclab.model.version_volumes import version_volumes
from poclab.model.volumes import Kind
from poclab.store import damaged
from poclab.store.marks import Marks
from poclab.store.parked import ParkedDisks
from poclab.store.usage import users
from poclab.store.versions import Store
from poclab.virt import allocation
from poclab.virt.host import Host
from poclab.virt.pool_local import LocalPool


@dataclass(frozen=True)
class ImageRow:
    """A line of `poclab image ls`; the fields are the JSON's keys.

    Attributes:
        name: the image.
        tag: the tag.
        digest: that of the base disk.
        created: when it was published.
        origin: how it came: "built", "imported" or "committed", and from what.
        size: bytes of the base disk's file.
        unique: bytes on the disk that no other version has; None where that cannot be known.
        used_by: VMs on it, `LAB/VM`, marks that name it, `LAB@MARK`, and parked disks,
            `LAB/VM@TIME`, separated by blanks.
        protected: whether `image rm` refuses it.
    """

    name: str
    tag: str
    digest: str
    created: str
    origin: str
    size: int
    unique: int | None
    used_by: str
    protected: bool


def image_rows(host: Host) -> list[ImageRow]:
    """All versions."""
    damaged.warn(host, damaged.domains, damaged.versions, damaged.marks, damaged.parked)
    vms, marks = host.vms(), Marks.of(host.pool)
    parked = ParkedDisks.of(host.pool).kept(vms)
    versions = Store(host.pool, host.uri).versions()
    return [
        _image_row(version, users(version, vms, marks, parked), alone)
        for version, alone in zip(versions, _unique(host, versions), strict=True)
    ]


def _unique(host: Host, versions: list[Version]) -> list[int | None]:
    """The bytes that each version alone has, as far as they can be known."""
    if not isinstance(host.pool, LocalPool):
        return [None] * len(versions)
    names = list(map(str, volumes.known(host.pool.names(), Kind.BASE, Kind.MANIFEST)))
    found = allocation.find(host.pool, names)
    own = [version_volumes(version) for version in versions]
    rest = set(names).difference(*own)
    each, _ = tally([found.of(parts) for parts in (*own, rest)])
    known = [found.unknown.isdisjoint(parts) for parts in own]
    return [item.unique if sure else None for item, sure in zip(each, known, strict=False)]


def _image_row(version: Version, used_by: list[str], unique: int | None) -> ImageRow:
    return ImageRow(
        name=version.ref.image,
        tag=version.ref.tag,
        digest=version.digest,
        created=version.created,
        origin=f"{version.origin.kind} {version.origin.source}",
        size=version.size,
        unique=unique,
        used_by=" ".join(used_by),
        protected=version.protected,
    )
