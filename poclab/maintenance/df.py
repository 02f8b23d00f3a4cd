"""What versions and labs take on the disk, and what the same would take as full snapshots."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from poclab.core import events
from poclab.disks import extents
from poclab.disks.extents import Tally
from poclab.maintenance.orphans import orphans
from poclab.model import volumes as volume_names
from poclab.model.host import ObservedVm
from poclab.model.ownership import volumes
from poclab.model.version import Version
from poclab.model.version_volumes import bases, packed_volume, version_volumes
from poclab.model.volumes import Kind
from poclab.store import damaged
from poclab.store.parked import Parked, ParkedDisks
from poclab.store.versions import Store
from poclab.virt import allocation
from poclab.virt.allocation import Places
from poclab.virt.host import Host
from poclab.virt.pool_setup import MARKER

GARBAGE = "garbage"
TOTAL = "total"
# What volumes of a lab are called.
_LAB_KINDS = {
    Kind.OVERLAY: "system disks",
    Kind.SCRATCH: "data disks",
    Kind.DATA: "data disks",
    Kind.WARM: "warm states",
    Kind.MARK: "marks",
    Kind.PARKED: "parked disks",
}


@dataclass(frozen=True)
class SpaceRow:
    """A line of `poclab df`; the fields are the JSON's keys.

    Attributes:
        kind: "version", "system disks", "data disks", "warm states" (their memory), "parked
            disks" or "marks" of a lab, "other", "garbage" or "total".
        name: the version, the lab, or the volume of another kind.
        allocated: bytes on the disk, those that are shared included.
        shared: those that other lines have too; None where that cannot be known.
        unique: the others; None likewise.
        full: bytes that full, unshared copies would take.
    """

    kind: str
    name: str
    allocated: int
    shared: int | None
    unique: int | None
    full: int


@dataclass(frozen=True)
class Group:
    """Volumes that make up one line.

    Attributes:
        kind: see `SpaceRow`.
        name: likewise.
        volumes: what is counted once.
        copies: what is copied when each thing is a full one, with repetitions.
    """

    kind: str
    name: str
    volumes: frozenset[str]
    copies: tuple[str, ...]


def space(host: Host) -> list[SpaceRow]:
    """What each version and each lab takes, what is garbage, and all in all."""
    damaged.warn(host, damaged.find)
    versions = Store(host.pool, host.uri).versions()
    vms, names = host.vms(), [*host.pool.names(), *host.pool.strays()]
    garbage = [orphan.name for orphan in orphans(host)]
    found = allocation.find(host.pool, dict.fromkeys([*names, *garbage]))
    if found.unknown:
        events.note(
            f"{len(found.unknown)} of {len(found.ranges)} volumes cannot be looked into:"
            " what they share is not known, and what is allocated is the file system's figure"
        )
    apart = ParkedDisks.of(host.pool).kept(vms)
    return rows(groups(versions, vms, names, garbage, apart), found, _unpacked(versions))


def groups(
    versions: Iterable[Version],
    vms: Iterable[ObservedVm],
    names: Iterable[str],
    garbage: Collection[str],
    apart: Iterable[Parked] = (),
) -> list[Group]:
    """Which volumes are counted where; every volume is, but for the pool's marker. Pure."""
    waste = frozenset(garbage)
    rest = dict.fromkeys(names)
    for name in (*waste, MARKER):
        rest.pop(name, None)
    found = [
        Group("version", str(item.ref), frozenset(version_volumes(item)) - waste, bases(item))
        for item in versions
    ]
    for name in {name for group in found for name in group.volumes}:
        rest.pop(name, None)
    found += _of_labs(rest, vms, list(apart))
    found += [Group("other", name, frozenset([name]), (name,)) for name in rest if not _lab(name)]
    return [*found, Group(GARBAGE, "poclab gc", waste, ())]


def _of_labs(
    names: Iterable[str], vms: Iterable[ObservedVm], apart: Sequence[Parked]
) -> Iterator[Group]:
    """The disks of each lab's VMs: those of a lab that is down too, which were kept."""
    records = [record for vm in vms for record in (vm.record, vm.running)]
    in_use = {name for record in records for name in volumes(record)}
    left = {name for item in apart for name in item.disks} - in_use
    below = {
        disk: bases(record)
        for record in (*records, *(item.record for item in apart))
        for disk in (record.overlay, *(item.volume for item in record.frozen if not item.disk))
    }
    labs: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if place := _lab(name):
            lab, kind = place
            kind = _LAB_KINDS[Kind.PARKED] if name in left else kind
            labs.setdefault((lab, kind), []).append(name)
    for (lab, kind), disks in sorted(labs.items()):
        copies = tuple(each for name in disks for each in (name, *below.get(name, ())))
        yield Group(kind, lab, frozenset(disks), copies)


def _lab(name: str) -> tuple[str, str] | None:
    """The lab that a volume belongs to, and what it is there."""
    found = volume_names.find(name)
    return (found.lab, _LAB_KINDS[found.kind]) if found and found.kind in _LAB_KINDS else None


def _unpacked(versions: Iterable[Version]) -> dict[str, int]:
    """Bytes that bases have when they are not packed."""
    return {bases(item)[0]: item.size for item in versions}


def rows(
    found: Sequence[Group], where: Places, unpacked: Mapping[str, int] | None = None
) -> list[SpaceRow]:
    """The lines, with one for all at the end. Pure.

    Args:
        found: which volumes are counted where.
        where: the places of the volumes.
        unpacked: bytes of bases, for those that are there packed.
    """
    each, total = extents.tally([where.of(group.volumes) for group in found])
    copies = [_full(group, where, unpacked or {}) for group in found]
    lines = [
        _row(group.kind, group.name, what, full, known=where.unknown.isdisjoint(group.volumes))
        for group, what, full in zip(found, each, copies, strict=True)
    ]
    return [*lines, _row(TOTAL, "all", total, sum(copies), known=not where.unknown)]


def _row(kind: str, name: str, what: Tally, full: int, *, known: bool) -> SpaceRow:
    if not known:
        return SpaceRow(kind, name, what.allocated, None, None, full)
    return SpaceRow(kind, name, what.allocated, what.allocated - what.unique, what.unique, full)


def _full(group: Group, where: Places, unpacked: Mapping[str, int]) -> int:
    """Bytes that a group takes when all is copied; a packed base counts as what it was."""
    return sum(
        where.size(name) or unpacked.get(name) or where.size(packed_volume(name))
        for name in group.copies
    )
