"""Records of the pool with a checksum of their own: written, read back and checked. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from poclab.core.errors import NewerFormatError
from poclab.model import shapes

T = TypeVar("T")


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
