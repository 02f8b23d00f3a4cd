"""A version's manifest: the volume that makes it a version. Pure.

A manifest is JSON with its own checksum; a version exists if and only if its manifest parses,
the checksum holds and the base disks it names are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from poclab.model import Origin, Profile, Ref, Version, VmRecord
from poclab.names import is_name, is_tag

FORMAT = 1
MANIFEST = "manifest."
_END = ".json"
BASE = "base."
PACKED = ".zst"


class NewerFormatError(ValueError):
    """A manifest that a newer poclab wrote: it holds, but cannot be understood here."""


class Volumes(Protocol):
    """What reading manifests needs of a pool."""

    def names(self) -> list[str]:
        """All volumes."""

    def read(self, name: str) -> bytes:
        """A small volume's content."""


def now() -> str:
    """The time as records hold it: RFC 3339, UTC, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def manifest_volume(ref: Ref) -> str:
    """The volume of a version's manifest; an image name holds no dot, so it parses back."""
    return f"{MANIFEST}{ref.image}.{ref.tag}{_END}"


def ref_of(volume: str) -> Ref | None:
    """The version whose manifest a volume is by its name, or None."""
    name = volume.removeprefix(MANIFEST).removesuffix(_END)
    image, dot, tag = name.partition(".")
    known = dot and is_name(image) and is_tag(tag)
    return Ref(image, tag) if known and manifest_volume(Ref(image, tag)) == volume else None


def base_volume(digest: str) -> str:
    """The volume of a base disk."""
    return f"{BASE}{digest.rpartition(':')[2]}.qcow2"


def packed_volume(base: str) -> str:
    """The volume of a base disk that is packed: compressed, of no use to a VM as it is."""
    return base + PACKED


def with_packed(names: Iterable[str]) -> set[str]:
    """The volumes that are there, and the bases that are there packed by their usual names."""
    found = set(names)
    return found | {name.removesuffix(PACKED) for name in found if name.startswith(BASE)}


def encode(version: Version) -> bytes:
    """A version's manifest."""
    return seal({"format": FORMAT, **asdict(version), "ref": str(version.ref)})


def decode(data: bytes) -> Version:
    """Read a manifest.

    Raises:
        NewerFormatError: a newer program wrote it.
        ValueError: it is cut short or was changed.
    """
    with unsealed(data, FORMAT) as body:
        image, _, tag = str(body.pop("ref")).partition(":")
        origin = Origin(**body.pop("origin"))
        profile = Profile(body.pop("profile"))
        parents = tuple(str(digest) for digest in body.pop("parents", ()))
        name = Ref(image, tag)
        return Version(ref=name, origin=origin, profile=profile, parents=parents, **body)


def seal(body: Mapping[str, Any]) -> bytes:
    """JSON with a checksum of its own, for volumes that may be cut short."""
    return json.dumps({**body, "checksum": _checksum(body)}, indent=1, sort_keys=True).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Read what `seal` made.

    Raises:
        ValueError: it is cut short or was changed.
        RecursionError: it is nested too deeply to be read.
    """
    body = json.loads(data)
    if not isinstance(body, dict) or body.pop("checksum", None) != _checksum(body):
        raise ValueError("its checksum does not hold")
    return body


@contextmanager
def unsealed(data: bytes, form: int) -> Iterator[dict[str, Any]]:
    """What `seal` made, without its format, to be read in the block.

    Args:
        data: the volume's content.
        form: the format that this program writes.

    Raises:
        NewerFormatError: a newer program wrote it.
        ValueError: it is cut short or was changed, or the block does not find in it what it needs.
    """
    try:
        body = unseal(data)
        if body.pop("format") != form:
            raise NewerFormatError("a newer poclab made it")
        yield body
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"it is no manifest: {error!r}") from error


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def bases(item: Version | VmRecord) -> tuple[str, ...]:
    """The volumes a version's disk consists of, or a VM's below its own: the top first."""
    return tuple(base_volume(digest) for digest in (item.digest, *item.parents))


def version_volumes(version: Version) -> set[str]:
    """The volumes a version may consist of: its manifest, and its bases, plain or packed."""
    below = bases(version)
    return {manifest_volume(version.ref), *below, *map(packed_volume, below)}
