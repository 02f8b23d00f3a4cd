"""The volumes of versions: which there are, and what they are called. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from poclab.core.units import MIB
from poclab.model import volumes
from poclab.model.record import VmRecord
from poclab.model.version import Ref, Version
from poclab.model.volumes import Kind, VolumeName

LARGEST = 4 * MIB  # bytes of a manifest; a larger one is not read


def manifest_volume(ref: Ref) -> str:
    """The volume of a version's manifest."""
    return str(VolumeName(Kind.MANIFEST, image=ref.image, name=ref.tag, end="json"))


def ref_of(volume: str) -> Ref | None:
    """The version whose manifest a volume is by its name, or None."""
    name = volumes.find(volume)
    return Ref(name.image, name.name) if name and name.kind is Kind.MANIFEST else None


def base_volume(digest: str) -> str:
    """The volume of a base disk."""
    return str(volumes.base(digest))


def packed_volume(base: str) -> str:
    """The volume of a base disk that is packed: compressed, of no use to a VM as it is."""
    return f"{base}.zst"


def with_packed(names: Iterable[str]) -> set[str]:
    """The volumes that are there, and the bases that are there packed by their usual names."""
    found = set(names)
    return found | {str(name.plain) for name in volumes.known(found, Kind.BASE)}


def bases(item: Version | VmRecord) -> tuple[str, ...]:
    """The volumes a version's disk consists of, or a VM's below its own: the top first."""
    return tuple(base_volume(digest) for digest in (item.digest, *item.parents))


def version_volumes(version: Version) -> set[str]:
    """The volumes a version may consist of: its manifest, and its bases, plain or packed."""
    below = bases(version)
    return {manifest_volume(version.ref), *below, *map(packed_volume, below)}
