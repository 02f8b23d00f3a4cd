"""A version's manifest: the volume that makes it a version. Pure.

A manifest is JSON with its own checksum; a version exists if and only if its manifest parses,
the checksum holds and the base disks it names are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict

from poclab.core.errors import PoclabError
from poclab.core.plaintext import stored
from poclab.core.units import KIB
from poclab.model import shapes
from poclab.model.version import Origin, Profile, Ref, Version
from poclab.model.version_volumes import LARGEST
from poclab.store.sealed import seal, unsealed

FORMAT = 1


def encode(version: Version) -> bytes:
    """Write a version's manifest; free text in it becomes plain (see `plaintext.stored`).

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
