"""The tables that commands print: their columns, and how values are written in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poclab.core.units import format_seconds, format_size

if TYPE_CHECKING:
    pass


_HELP = 64_000  # characters: commands to be pasted, which must not be cut


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        key: the field of the row.
        show: from the field's value to its text.
        limit: characters of a cell; what is longer is cut.
    """

    title: str
    key: str
    show: Callable[[Any], str] = str
    limit: int = 1000


def short_digest(digest: str) -> str:
    """The first 12 digits of a digest, as container tools show them."""
    return digest.rpartition(":")[2][:12]


def seconds(value: float | None) -> str:
    """A duration, or a dash."""
    return "-" if value is None else format_seconds(value)


def size(value: int | None) -> str:
    """A size for people, or a dash."""
    return "-" if value is None else format_size(value)


def yes_no(value: bool) -> str:
    """A flag for people."""
    return "yes" if value else "no"


STATUS = (
    Column("LAB", "lab"),
    Column("VM", "vm"),
    Column("STATE", "state"),
    Column("VERSION", "runs"),
    Column("DIGEST", "tag_digest", short_digest),
    Column("ADDRESS", "address"),
    Column("READY", "ready"),
    Column("UPTIME", "uptime", seconds),
    Column("WRITTEN", "written", size),
    Column("DRIFT", "drift"),
)


IMAGES = (
    Column("NAME", "name"),
    Column("TAG", "tag"),
    Column("DIGEST", "digest", short_digest),
    Column("CREATED", "created"),
    Column("ORIGIN", "origin"),
    Column("SIZE", "size", size),
    Column("UNIQUE", "unique", size),
    Column("USED BY", "used_by"),
)


SPACE = (
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("ALLOCATED", "allocated", size),
    Column("SHARED", "shared", size),
    Column("UNIQUE", "unique", size),
    Column("FULL", "full", size),
)


HISTORY = (
    Column("TIME", "time"),
    Column("ACTION", "action"),
    Column("VERSION", "version"),
    Column("DIGEST", "digest", short_digest),
    Column("BY", "by"),
    Column("START", "start"),
    Column("READY AFTER", "seconds", seconds),
)


WARM = (
    Column("LAB", "lab"),
    Column("VM", "vm"),
    Column("VERSION", "version"),
    Column("DIGEST", "digest", short_digest),
    Column("CREATED", "created"),
    Column("MEMORY", "memory", size),
    Column("DISKS", "disks", size),
    Column("IN USE", "in_use", yes_no),
)


MARKS = (
    Column("LAB", "lab"),
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("CREATED", "created"),
    Column("BY", "by"),
    Column("VERSIONS", "versions", lambda found: ", ".join(f"{k} {v}" for k, v in found.items())),
    Column("MESSAGE", "message"),
)


PARKED = (
    Column("LAB", "lab"),
    Column("VM", "vm"),
    Column("TIME", "time"),
    Column("VERSION", "version"),
    Column("SIZE", "size", size),
    Column("EXPIRES", "expires"),
    Column("BY", "by"),
)


CHECKS = (Column("CHECK", "check"), Column("RESULT", "result"), Column("HELP", "help", limit=_HELP))


ACTIONS = (
    Column("ACTION", "action"),
    Column("TARGET", "target"),
    Column("REASON", "reason"),
    Column("NOTES", "notes"),
)
