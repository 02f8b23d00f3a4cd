"""Shapes: what a value that was read back has to be, checked before anything believes it. Pure.

Records and manifests are on the host, where others may write them: each decoder says with these
what it takes, and gets values of the right type and range or a ValueError that names the field.
The same shapes serve JSON, where values have types, and XML attributes, which are all text.

A module of its own, and no library: pydantic costs every start 55 ms and msgspec 6 ms, neither
reads XML attributes, and msgspec lets unknown keys of a dataclass pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from poclab.core.plaintext import shown
from poclab.core.units import TIB
from poclab.model.names import is_name, is_tag, is_user

T = TypeVar("T")
K = TypeVar("K")
E = TypeVar("E", bound=Enum)
# Takes a value of any type; gives the one that is meant, or raises ValueError.
Shape = Callable[[object], T]


class ShapeError(ValueError):
    """A value of another shape.

    Attributes:
        what: what was expected and found.
        where: the field, with dots and brackets.
    """

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(f"{where}: {what}" if where else what)
        self.what = what
        self.where = where


LARGEST = 64 * TIB  # bytes of a disk: more than any file system that a pool is on holds
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# OCI's grammar of digests (image-spec, descriptor.md) with what such a digest has at least.
_DIGEST = re.compile(r"[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]{32,128}")
# Those that name bases: BLAKE3 and SHA-256 both have 256 bits.
_DISK_DIGEST = re.compile(r"(blake3|sha256):[0-9a-f]{64}")


def text(
    limit: int = 4096, pattern: re.Pattern[str] | None = None, what: str = "text"
) -> Shape[str]:
    """A text of at most so many characters, all of it as a pattern has it."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"expected {what}, found {_kind(value)}")
        if len(value) > limit:
            raise ValueError(f"expected at most {limit} characters, found {len(value)}")
        if pattern and not pattern.fullmatch(value):
            raise ValueError(f"expected {what}, found {shown(value)}")
        return value

    return read


def line(limit: int = 4096) -> Shape[str]:
    """A text that can be part of a command line or a file: printable, in one line."""
    return that(str.isprintable, "printable text in one line", limit)


def that(holds: Callable[[str], bool], what: str, limit: int = 4096) -> Shape[str]:
    """A text for which something holds."""
    whole = text(limit, what=what)

    def read(value: object) -> str:
        found = whole(value)
        if not holds(found):
            raise ValueError(f"expected {what}, found {shown(found)}")
        return found

    return read


def whole(low: int, high: int) -> Shape[int]:
    """A whole number in a range."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"expected a whole number, found {_kind(value)}")
        if not low <= value <= high:
            raise ValueError(f"expected {low} to {high}, found another number")
        return value

    return read


def real(low: float, high: float) -> Shape[float]:
    """A number in a range; neither infinite nor none."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"expected a number, found {_kind(value)}")
        if not (low <= value <= high and math.isfinite(value)):
            raise ValueError(f"expected {low} to {high}, found another number")
        return float(value)

    return read


def digits(shape: Shape[int]) -> Shape[int]:
    """A whole number as an XML attribute has it."""
    plain = text(20, re.compile(r"[0-9]+"), "a whole number")
    return lambda value: shape(int(plain(value)))


def decimal(shape: Shape[float]) -> Shape[float]:
    """A number as an XML attribute has it."""
    plain = text(40, re.compile(r"[0-9]+(\.[0-9]+)?"), "a number")
    return lambda value: shape(float(plain(value)))


def maybe(shape: Shape[T]) -> Shape[T | None]:
    """What may be left out, and has this shape when it is there."""
    return shape


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {_kind(value)}")
    return value


def yes(value: object) -> bool:
    """True or false as an XML attribute has it: `yes`, or left out."""
    return text(3, re.compile("yes|no"), "yes or no")(value) == "yes"


def one_of(kind: type[E]) -> Shape[E]:
    """A word that stands for a member of an enumeration."""

    def read(value: object) -> E:
        try:
            return kind(text(64)(value))
        except ValueError as error:
            known = ", ".join(str(item.value) for item in kind)
            raise ValueError(f"expected one of {known}") from error

    return read


def parsed(make: Callable[[str], T], what: str, limit: int = 256) -> Shape[T]:
    """A text that something of a kind is made of; `make` raises ValueError for others."""
    plain = text(limit, what=what)

    def read(value: object) -> T:
        found = plain(value)
        try:
            return make(found)
        except ValueError as error:
            raise ValueError(f"expected {what}, found {shown(found)}") from error

    return read


def listed(item: Shape[T], most: int = 1000) -> Shape[tuple[T, ...]]:
    """A list of things of one shape."""

    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected a list, found {_kind(value)}")
        if len(value) > most:
            raise ValueError(f"expected at most {most} entries, found {len(value)}")
        found = []
        for number, each in enumerate(value):
            with _at(f"[{number}]"):
                found.append(item(each))
        return tuple(found)

    return read


def mapping(key: Shape[str], item: Shape[T], most: int = 1000) -> Shape[dict[str, T]]:
    """An object whose keys are free."""

    def read(value: object) -> dict[str, T]:
        found = _object(value)
        if len(found) > most:
            raise ValueError(f"expected at most {most} entries, found {len(found)}")
        result = {}
        for name, each in found.items():
            with _at(f"[{shown(name)}]"):
                result[key(name)] = item(each)
        return result

    return read


def fields(make: Callable[[Fields], T]) -> Shape[T]:
    """An object whose keys are known; `make` takes each out, and none may be left over."""

    def read(value: object) -> T:
        found = Fields(_object(value))
        made = make(found)
        found.end()
        return made

    return read


_NONE: Any = object()


class Fields:
    """The values of one object by name, each taken with the shape it must have."""

    def __init__(self, values: Mapping[str, object], where: str = "") -> None:
        self._left = dict(values)
        self._where = f"{where}." if where else ""

    def __call__(self, name: str, shape: Shape[T], default: T = _NONE) -> T:
        """Take a value.

        Args:
            name: its name.
            shape: what it must be.
            default: what it is when it was left out; without one it must be there.

        Raises:
            ValueError: if it is missing or of another shape.
        """
        if name not in self._left:
            if default is _NONE:
                raise ShapeError("missing", f"{self._where}{name}")
            return default
        with _at(f"{self._where}{name}"):
            return shape(self._left.pop(name))

    def end(self) -> None:
        """Check that nothing is left that nobody knows.

        Raises:
            ValueError: if something is.
        """
        for name in self._left:
            raise ValueError(f"unknown field {shown(name)}")


def at(where: str, read: Callable[[K], T], value: K) -> T:
    """Read a value, and say in an error where it was."""
    with _at(where):
        return read(value)


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Say in an error where the value was."""
    try:
        yield
    except ShapeError as error:
        dot = "." if error.where and not error.where.startswith("[") else ""
        raise ShapeError(error.what, f"{where}{dot}{error.where}") from error
    except ValueError as error:
        raise ShapeError(str(error), where) from error


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """What a value of JSON is, in words."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    more = {list: "a list", dict: "an object", type(None): "nothing"}
    return (kinds | more).get(type(value), type(value).__name__)


def is_time(value: str) -> bool:
    """Whether a text is a time as records have it: RFC 3339, UTC, seconds."""
    try:
        return _TIME.fullmatch(value) is not None and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


# --- what many records have -----------------------------------------------------------------

NAME: Shape[str] = that(is_name, "a name", 40)
TAG: Shape[str] = that(is_tag, "a tag", 128)
USER: Shape[str] = that(is_user, "a user's name", 256)
TIME: Shape[str] = that(is_time, "a time (RFC 3339, UTC)", 20)
MAC: Shape[str] = text(17, _MAC, "a MAC address")
DIGEST: Shape[str] = text(256, _DIGEST, "a digest")
DISK_DIGEST: Shape[str] = text(71, _DISK_DIGEST, "a digest of a disk")
SIZE: Shape[int] = whole(0, LARGEST)
PORT: Shape[int] = whole(1, 65535)
