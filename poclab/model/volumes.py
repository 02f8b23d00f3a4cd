"""Names of volumes: what the pool's volumes are called, made and read in this one place. Pure.

A name is read whole or not at all: one kind, all of its parts, each with the grammar of
`poclab.model.names`. None of these can hold a `/`, a blank or a control character, so a name
that was read is one file of the pool's directory and nothing else. Whatever does not parse
belongs to somebody else and is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from poclab.core import hints
from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.model.names import NAME_PATTERN, TAG_PATTERN


class Kind(StrEnum):
    """What a volume is; the value is what its name begins with."""

    BASE = "base"
    MANIFEST = "manifest"
    OVERLAY = "overlay"
    SCRATCH = "scratch"
    DATA = "data"
    WARM = "warm"
    MARK = "mark"
    PARKED = "parked"
    POOL = "poclab"
    MOVE = "move"
    STAGING = "tmp"


_N = f"(?:{NAME_PATTERN.replace('(', '(?:')})"
# Hexadecimal today; what comes after `-` tells disks apart that share their data disks. Bounded,
# since a record may hold any.
_G = r"(?P<generation>[0-9a-z]{1,32}(?:-[0-9a-z]{1,32})?)"
# The groups are fields of `VolumeName`.
_VM = rf"(?P<lab>{_N})\.(?P<vm>{_N})"
# Compiled when they are first needed, which re remembers: a start that lists nothing pays nothing.
_PATTERNS: dict[str, str] = {
    # BLAKE3 and SHA-256 both have 256 bits.
    Kind.BASE: r"base\.(?P<digest>[0-9a-f]{64})\.(?P<end>qcow2|qcow2\.zst)",
    Kind.MANIFEST: rf"manifest\.(?P<image>{_N})\.(?P<name>{TAG_PATTERN})\.(?P<end>json)",
    Kind.OVERLAY: rf"overlay\.{_VM}\.{_G}\.(?P<end>qcow2)",
    Kind.SCRATCH: rf"scratch\.{_VM}\.(?P<disk>{_N})\.{_G}\.(?P<end>qcow2)",
    Kind.DATA: rf"data\.{_VM}\.(?P<disk>{_N})\.(?P<end>qcow2)",
    Kind.WARM: rf"warm\.{_VM}\.{_G}\.(?P<end>json|ram)",
    Kind.MARK: rf"mark\.(?P<lab>{_N})\.(?P<name>{TAG_PATTERN})\.(?P<end>json)",
    Kind.PARKED: rf"parked\.{_VM}\.{_G}\.(?P<end>json)",
    Kind.POOL: r"poclab\.(?P<end>json)",
    Kind.STAGING: r"tmp\.(?P<name>[A-Za-z0-9_.-]{1,128})",
}
_LONGEST = 255  # NAME_MAX of Linux's file systems, limits.h


@dataclass(frozen=True)
class VolumeName:
    """A volume's name, in its parts; `str()` puts them together. Those it has not are empty.

    Attributes:
        kind: what the volume is.
        lab: the lab it belongs to.
        vm: the VM it belongs to.
        disk: the data disk's name.
        generation: what tells a VM's disks apart, new with each system disk.
        image: the image whose version a manifest makes.
        name: a version's tag, a mark's name, or what makes a work file's name unique.
        digest: a base's digest, hexadecimal, without its algorithm.
        end: what the name ends with: the format.
        moving: the data disk that is being renamed, for the marker of a rename.
    """

    kind: Kind
    lab: str = ""
    vm: str = ""
    disk: str = ""
    generation: str = ""
    image: str = ""
    name: str = ""
    digest: str = ""
    end: str = ""
    moving: VolumeName | None = None

    def __str__(self) -> str:
        parts = (self.lab, self.vm, self.disk, self.generation, self.image, self.digest, self.name)
        moving = str(self.moving) if self.moving else ""
        return ".".join(part for part in (self.kind.value, *parts, self.end, moving) if part)

    @classmethod
    def parse(cls, text: str) -> VolumeName:
        """Read a name.

        Raises:
            ValueError: if it is not the whole name of one kind of volume.
        """
        first, _, rest = text.partition(".")
        if len(text) <= _LONGEST:
            if first == Kind.MOVE and (moving := find(rest)) and moving.kind in DATA_DISKS:
                return cls(Kind.MOVE, moving=moving)
            pattern = _PATTERNS.get(first)  # a StrEnum is equal to its text
            if pattern and (match := re.fullmatch(pattern, text)):
                parts: dict[str, Any] = match.groupdict()
                return cls(Kind(first), **parts)
        raise ValueError(f"invalid volume name {shown(text)}")

    @property
    def packed(self) -> bool:
        """Whether it is a base that is packed."""
        return self.end == "qcow2.zst"

    @property
    def plain(self) -> VolumeName:
        """The same base, not packed."""
        return replace(self, end="qcow2")

    @property
    def first(self) -> str:
        """The part of the generation that a VM's disks share."""
        return self.generation.partition("-")[0]

    def of(self, lab: str, vm: str) -> bool:
        """Whether it belongs to a VM."""
        return (self.lab, self.vm) == (lab, vm)

    def may_become(self, new: VolumeName) -> bool:
        """Whether a rename from this to the new name is one that poclab does.

        Only data disks are renamed: when their `keep` changes, or when the VM's system disk does.
        """
        same = (self.lab, self.vm, self.disk) == (new.lab, new.vm, new.disk)
        return same and self != new and {self.kind, new.kind} <= DATA_DISKS


DATA_DISKS = frozenset({Kind.DATA, Kind.SCRATCH})
# What of a lab nobody was promised to keep: system disks, data disks that go with them, warm
# states, what says that disks are parked.
PASSING = frozenset({Kind.OVERLAY, Kind.SCRATCH, Kind.WARM, Kind.PARKED})
# What no listing of volumes shows.
HIDDEN = frozenset({Kind.MOVE, Kind.STAGING})


def find(text: str) -> VolumeName | None:
    """Read a name, None for one that does not parse."""
    try:
        return VolumeName.parse(text)
    except ValueError:
        return None


def known(names: Iterable[str], *kinds: Kind) -> Iterator[VolumeName]:
    """The names that parse, of some kinds or of all."""
    for text in names:
        name = find(text)
        if name and (not kinds or name.kind in kinds):
            yield name


def of_lab(names: Iterable[str], lab: str, *kinds: Kind) -> Iterator[VolumeName]:
    """The names of a lab's volumes, of some kinds or of all."""
    return (name for name in known(names, *kinds) if name.lab == lab)


def checked(text: str) -> str:
    """Return a name that parses; what opens, makes or deletes a volume asks this first.

    Raises:
        PoclabError: if it does not parse.
    """
    if find(text) is None:
        raise PoclabError(
            f"invalid volume name {shown(text, 200)}",
            why="poclab gives no such name, so it neither opens nor deletes that volume",
            fix="`poclab doctor` lists damaged records and how to remove them",
        )
    return text


def removal(name: str, uri: str) -> str:
    """The command with which a user deletes a volume that poclab does not touch."""
    return hints.virsh("vol-delete", "--pool", "poclab", names=[name], uri=uri)


# --- made -----------------------------------------------------------------------------------


def base(digest: str) -> VolumeName:
    """The base of a digest, `ALGORITHM:HEX`."""
    return VolumeName(Kind.BASE, digest=digest.rpartition(":")[2], end="qcow2")


def overlay(lab: str, vm: str, generation: str) -> VolumeName:
    """A VM's system disk."""
    return VolumeName(Kind.OVERLAY, lab=lab, vm=vm, generation=generation, end="qcow2")


def scratch(lab: str, vm: str, disk: str, generation: str) -> VolumeName:
    """A data disk that goes with the system disk."""
    first = generation.partition("-")[0]
    return VolumeName(Kind.SCRATCH, lab=lab, vm=vm, disk=disk, generation=first, end="qcow2")


def data(lab: str, vm: str, disk: str) -> VolumeName:
    """A data disk that is kept."""
    return VolumeName(Kind.DATA, lab=lab, vm=vm, disk=disk, end="qcow2")


def beside(system: str, kind: Kind, end: str) -> VolumeName:
    """What belongs to a system disk: the memory or the manifest of its generation.

    Raises:
        ValueError: if the text is not a system disk's name.
    """
    name = VolumeName.parse(system)
    if name.kind is not Kind.OVERLAY:
        raise ValueError(f"not a system disk: {shown(system)}")
    return replace(name, kind=kind, end=end)


def system_disk(text: str) -> str:
    """Return the text when it is the name of a system disk.

    Raises:
        ValueError: if it is not.
    """
    return str(beside(text, Kind.OVERLAY, "qcow2"))


def frozen_disk(text: str, disk: str) -> str:
    """Return the text when it can be the name of a disk that a warm state froze.

    Args:
        text: the volume's name.
        disk: the data disk's name, or an empty string for the system disk.

    Raises:
        ValueError: if it is another disk's.
    """
    name = VolumeName.parse(text)
    kind = Kind.SCRATCH if disk else Kind.OVERLAY
    if (name.kind, name.disk) != (kind, disk):
        raise ValueError(f"not such a disk: {shown(text)}")
    return text


def generation(system: str) -> str:
    """What tells a VM's system disk from the one before.

    Raises:
        ValueError: if the text is not a system disk's name.
    """
    return beside(system, Kind.OVERLAY, "qcow2").generation
