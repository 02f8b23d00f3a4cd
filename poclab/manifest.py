"""A version's manifest: the volume that makes it a version. Pure.

A manifest is JSON with its own checksum; a version exists if and only if its manifest parses,
the checksum holds and the base disks it names are there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from poclab import shapes, volumes
from poclab.errors import PoclabError
from poclab.model import Origin, Profile, Ref, Version, VmRecord
from poclab.names import stored
from poclab.units import KIB, MIB
from poclab.volumes import Kind, VolumeName

FORMAT = 1
LARGEST = 4 * MIB  # bytes of a manifest; a larger one is not read
T = TypeVar("T")


class NewerFormatError(ValueError):
    """A manifest that a newer poclab wrote: it holds, but cannot be understood here."""


class MalformedError(ValueError):
    """A manifest whose checksum holds, so it was not cut short, but whose content makes no sense.

    Somebody wrote it like that. What it names cannot be known, so nothing becomes garbage by it.
    """


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


def encode(version: Version) -> bytes:
    """Write a version's manifest; free text in it becomes plain (see `names.stored`).

    Raises:
        PoclabError: if it could not be read back.
    """
    origin = version.origin
    body = asdict(version)
    body["origin"] |= {"source": stored(origin.source), "inputs": _plain(origin.inputs)}
    body |= {
        "ref": str(version.ref),
        "user": stored(version.user),
        "labels": _plain(version.labels),
    }
    return readable(seal({"format": FORMAT, **body}), decode, str(version.ref))


def readable(data: bytes, read: Callable[[bytes], object], name: str) -> bytes:
    """Give a manifest back when its own reader takes it.

    One that is written and then refused would count as damaged for ever: nothing that it might
    be about could be deleted.

    Args:
        data: the manifest.
        read: its reader.
        name: what to call it in messages.

    Raises:
        PoclabError: if it is too large, or the reader refuses it.
    """
    try:
        if len(data) > LARGEST:
            raise ValueError(f"its record would have {len(data):,} bytes, more than {LARGEST:,}")
        read(data)
    except ValueError as error:
        raise PoclabError(
            f"cannot record {name}", why=str(error), fix="shorten or correct that, and try again"
        ) from error
    return data


def _plain(texts: Mapping[str, str]) -> dict[str, str]:
    return {stored(key): stored(value) for key, value in texts.items()}


def decode(data: bytes) -> Version:
    """Read a manifest.

    Raises:
        NewerFormatError: a newer program wrote it.
        MalformedError: its checksum holds, and what is in it is not what a version is.
        ValueError: it is cut short or was changed.
    """
    return unsealed(data, FORMAT, shapes.fields(_version))


def _ref(text: str) -> Ref:
    image, _, tag = text.partition(":")
    return Ref(shapes.NAME(image), shapes.TAG(tag))


_TEXTS = shapes.mapping(shapes.text(), shapes.text(64 * KIB))
# A stranger's, who may have chosen any: earlier versions of poclab kept them all. The size of the
# manifest bounds them.
_ANY_TEXT = shapes.text(LARGEST)
_LABELS = shapes.mapping(_ANY_TEXT, _ANY_TEXT, most=LARGEST)
REF: shapes.Shape[Ref] = shapes.parsed(_ref, "IMAGE:TAG")
PARENTS: shapes.Shape[tuple[str, ...]] = shapes.listed(shapes.DISK_DIGEST)
_ORIGIN_KIND = shapes.text(
    16, re.compile("built|imported|committed"), "built, imported or committed"
)


def _version(given: shapes.Fields) -> Version:
    return Version(
        ref=given("ref", REF),
        digest=given("digest", shapes.DISK_DIGEST),
        size=given("size", shapes.SIZE),
        virtual_size=given("virtual_size", shapes.SIZE),
        profile=given("profile", shapes.one_of(Profile)),
        origin=given("origin", shapes.fields(_origin)),
        created=given("created", shapes.TIME),
        user=given("user", _user, Version.user),
        labels=given("labels", _LABELS, {}),
        parents=given("parents", PARENTS, ()),
        protected=given("protected", shapes.flag, Version.protected),
    )


def _user(value: object) -> str:
    """The user; an empty one, which earlier versions of poclab wrote, stands for the default."""
    return Version.user if value == "" else shapes.USER(value)


def _origin(given: shapes.Fields) -> Origin:
    return Origin(
        kind=given("kind", _ORIGIN_KIND),
        source=given("source", shapes.text(64 * KIB)),
        digest=given("digest", shapes.text(256), Origin.digest),
        builder=given("builder", shapes.text(), Origin.builder),
        inputs=given("inputs", _TEXTS, {}),
    )


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


def unsealed(data: bytes, form: int, shape: shapes.Shape[T]) -> T:
    """Read what `seal` made.

    Args:
        data: the volume's content.
        form: the format that this program writes.
        shape: what the body must be, without its format.

    Raises:
        NewerFormatError: a newer program wrote it.
        MalformedError: its checksum holds, and it is of another shape.
        ValueError: it is cut short or was changed.
    """
    try:
        body = unseal(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    number = body.pop("format", None)
    if isinstance(number, int) and number > form:
        raise NewerFormatError("a newer poclab made it")
    if number != form or isinstance(number, bool):
        raise MalformedError("it has no known format")
    try:
        return shape(body)
    except ValueError as error:
        raise MalformedError(str(error)) from error


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
