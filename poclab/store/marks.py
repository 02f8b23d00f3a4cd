"""What a mark is: a name for the versions that the VMs of a lab run at one time.

A mark is a manifest volume `mark.LAB.NAME.json` in the pool. It names versions by their digests and
holds no disk of its own. While `poclab mark --commit` is at work the manifest also says which
versions are being made, of which disks; until they are there, the mark is what it was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from poclab.core.errors import NewerFormatError, PoclabError
from poclab.core.plaintext import stored
from poclab.model import shapes, volumes
from poclab.model.version import Ref, Version
from poclab.model.volumes import Kind, VolumeName
from poclab.store.manifest import REF, readable
from poclab.store.sealed import Volumes, seal, unsealed

FORMAT = 1


@dataclass(frozen=True)
class Marked:
    """A VM of a mark.

    Attributes:
        vm: the VM's name.
        version: the version it is brought back to.
        digest: that version's digest.
    """

    vm: str
    version: Ref
    digest: str


@dataclass(frozen=True)
class Pending:
    """A version that is being made for a mark.

    Attributes:
        vm: the VM's name.
        version: the version's name to be.
        overlay: the system disk that it is made of.
    """

    vm: str
    version: Ref
    overlay: str


@dataclass(frozen=True)
class Mark:
    """A mark, as its manifest says.

    Attributes:
        lab: the lab's name.
        name: the mark's name; a tag's rules hold for it.
        created: when it was made or moved.
        by: the user who did it.
        message: a line about it, or an empty string.
        vms: the VMs with their versions; none while a new mark's are being made.
        pending: versions that are being made for what the mark will be.
    """

    lab: str
    name: str
    created: str
    by: str
    message: str = ""
    vms: tuple[Marked, ...] = ()
    pending: tuple[Pending, ...] = ()

    def __str__(self) -> str:
        return f"{self.lab}@{self.name}"

    @property
    def volume(self) -> str:
        """Its manifest's volume."""
        return mark_volume(self.lab, self.name)

    def of(self, vm: str) -> Marked | None:
        """What it says of a VM."""
        return next((item for item in self.vms if item.vm == vm), None)


def mark_volume(lab: str, name: str) -> str:
    """The volume of a mark."""
    return str(VolumeName(Kind.MARK, lab=lab, name=name, end="json"))


def place(volume: str) -> tuple[str, str] | None:
    """The lab and the name of the mark whose manifest a volume is by its name, or None."""
    name = volumes.find(volume)
    return (name.lab, name.name) if name and name.kind is Kind.MARK else None


def encode(mark: Mark) -> bytes:
    """Write a mark's manifest; free text in it becomes plain (see `plaintext.stored`).

    Raises:
        PoclabError: if it could not be read back.
    """
    texts = {"by": stored(mark.by), "message": stored(mark.message)}
    data = seal({"format": FORMAT, **_plain(asdict(mark)), **texts})
    return readable(data, decode, f"mark {mark.lab}@{mark.name}")


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """Versions in one word each."""
    for key in ("vms", "pending"):
        body[key] = [
            {**item, "version": f"{item['version']['image']}:{item['version']['tag']}"}
            for item in body[key]
        ]
    return body


def decode(data: bytes) -> Mark:
    """Read a mark's manifest.

    Raises:
        NewerFormatError: a newer program wrote it.
        ValueError: it is cut short, was changed, or is no mark.
    """
    return unsealed(data, FORMAT, shapes.fields(_mark))


def _mark(given: shapes.Fields) -> Mark:
    return Mark(
        lab=given("lab", shapes.NAME),
        name=given("name", shapes.TAG),
        created=given("created", shapes.TIME),
        by=given("by", shapes.text()),
        message=given("message", shapes.text(), Mark.message),
        vms=given("vms", shapes.listed(shapes.fields(_marked))),
        pending=given("pending", shapes.listed(shapes.fields(_pending))),
    )


def _marked(given: shapes.Fields) -> Marked:
    return Marked(
        given("vm", shapes.NAME), given("version", REF), given("digest", shapes.DISK_DIGEST)
    )


def _pending(given: shapes.Fields) -> Pending:
    overlay = shapes.parsed(volumes.system_disk, "a system disk's name")
    return Pending(given("vm", shapes.NAME), given("version", REF), given("overlay", overlay))


# --- what there is --------------------------------------------------------------------------


@dataclass(frozen=True)
class Unreadable:
    """A mark whose manifest does not hold: nobody knows which versions it names.

    Attributes:
        lab: the lab's name, by the volume's.
        name: the mark's.
        fault: what is wrong with it.
        newer: whether it holds and only a newer poclab understands it.
    """

    lab: str
    name: str
    fault: str
    newer: bool = False

    def __str__(self) -> str:
        return f"{self.lab}@{self.name}"

    def error(self) -> PoclabError:
        """What to tell whoever needs it."""
        fix = f"poclab unmark {self.lab} {self.name}, and mark the lab anew"
        return PoclabError(
            f"the mark {self.name} of {self.lab} cannot be read",
            why=f"{mark_volume(self.lab, self.name)}: {self.fault}",
            fix="use the newer poclab" if self.newer else fix,
        )


@dataclass(frozen=True)
class Marks:
    """The marks in a pool, of one lab or of all, by lab and time.

    Attributes:
        marks: those whose manifests hold.
        unreadable: the others.
    """

    marks: tuple[Mark, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    @classmethod
    def of(cls, pool: Volumes, lab: str | None = None) -> Marks:
        """Read what there is."""
        names = volumes.known(pool.names(), Kind.MARK)
        found = [_load(pool, x.lab, x.name) for x in names if lab in (None, x.lab)]
        marks = [item for item in found if isinstance(item, Mark)]
        return cls(
            tuple(sorted(marks, key=lambda item: (item.lab, item.created, item.name))),
            tuple(item for item in found if isinstance(item, Unreadable)),
        )

    def find(self, lab: str, name: str) -> Mark | None:
        """A mark by its name.

        Raises:
            PoclabError: there is one that cannot be read.
        """
        for lost in self.unreadable:
            if (lost.lab, lost.name) == (lab, name):
                raise lost.error()
        return next((x for x in self.marks if (x.lab, x.name) == (lab, name)), None)

    def naming(self, version: Version) -> Iterator[Mark]:
        """The marks that name a version."""
        for mark in self.marks:
            if any((x.version, x.digest) == (version.ref, version.digest) for x in mark.vms):
                yield mark


def _load(pool: Volumes, lab: str, name: str) -> Mark | Unreadable:
    try:
        mark = decode(pool.read(mark_volume(lab, name)))
    except NewerFormatError as error:
        return Unreadable(lab, name, str(error), newer=True)
    except ValueError as error:
        return Unreadable(lab, name, str(error))
    except PoclabError as error:
        return Unreadable(lab, name, error.why or error.what)
    if (mark.lab, mark.name) != (lab, name):
        return Unreadable(lab, name, f"it is the manifest of {mark}")
    return mark
