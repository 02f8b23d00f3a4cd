"""Disks that a VM was taken off and can be put back on: what `poclab restore` goes by.

A parked disk is a VM's system disk with the data disks that go with it, and a manifest volume
`parked.LAB.VM.MARK.json` that keeps them from being garbage; MARK is the system disk's. Every
reset writes one before it takes a VM off its disk. Unless the user asked for more, it holds
until the VM has run on the disk that took its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from poclab.core import events, safe_xml
from poclab.core.errors import NewerFormatError, PoclabError
from poclab.core.plaintext import stored
from poclab.core.timestamps import now
from poclab.core.units import MIB
from poclab.definitions import metadata
from poclab.model import shapes, volumes
from poclab.model.host import ObservedVm
from poclab.model.record import VmRecord
from poclab.model.version_volumes import bases
from poclab.model.vm_volumes import data_volume
from poclab.model.volumes import Kind, VolumeName
from poclab.store.manifest import readable
from poclab.store.sealed import Volumes, seal, unsealed
from poclab.virt.errors import GoneError

FORMAT = 1
NEVER = "never"
# It goes when the VM has run on the disk that took its place.
START = "start"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Writable(Volumes, Protocol):
    """What parking needs of a pool."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a small volume."""

    def rewrite(self, name: str, data: bytes) -> None:
        """Replace a small volume in one go."""

    def delete(self, name: str) -> None:
        """Delete a volume."""


@dataclass(frozen=True)
class Parked:
    """A VM's disks that it was taken off, as their manifest says.

    Attributes:
        record: what the VM was, without its history.
        time: when it was taken off them; no two of a VM have the same.
        by: who did it.
        expires: when `gc` may delete them; or `never`; or `start`, when the VM has run on what
            took their place.
    """

    record: VmRecord
    time: str
    by: str
    expires: str

    @property
    def name(self) -> str:
        """How a user names it: `LAB/VM@TIME`."""
        return f"{self.record.path}@{self.time}"

    @property
    def manifest(self) -> str:
        """Its manifest's volume."""
        return str(volumes.beside(self.record.overlay, Kind.PARKED, "json"))

    @property
    def disks(self) -> frozenset[str]:
        """The volumes it consists of; kept data disks stay with the VM and are no part of it."""
        record = self.record
        passing = (data_volume(record, disk) for disk in record.disks if not disk.keep)
        return frozenset({record.overlay, *passing, *(item.volume for item in record.frozen)})

    @property
    def lasting(self) -> bool:
        """Whether somebody asked for it to be kept."""
        return self.expires != START

    def expired(self, at: str) -> bool:
        """Whether its time is up."""
        return self.expires not in (NEVER, START) and self.expires <= at


def expiry(time: str, lifetime: float | None) -> str:
    """When something expires that was made at a time; `lifetime` is seconds, None for ever."""
    if lifetime is None:
        return NEVER
    try:
        return _text(_parse(time) + timedelta(seconds=lifetime))
    except OverflowError:
        return NEVER


def _parse(time: str) -> datetime:
    return datetime.strptime(time, _TIME).replace(tzinfo=UTC)


def _text(time: datetime) -> str:
    return time.strftime(_TIME)


# --- manifests ------------------------------------------------------------------------------


def encode(item: Parked) -> bytes:
    """Write the manifest: the VM's record is in it as its domain has it.

    Raises:
        PoclabError: if it could not be read back.
    """
    record = metadata.text(metadata.vm_element(item.record))
    body = {"time": item.time, "by": stored(item.by), "expires": item.expires, "record": record}
    return readable(seal({"format": FORMAT, **body}), decode, f"the disk of {item.record.path}")


def decode(data: bytes) -> Parked:
    """Read a manifest.

    Raises:
        NewerFormatError: a newer program wrote it.
        ValueError: it is cut short or was changed.
    """
    return unsealed(data, FORMAT, shapes.fields(_parked))


def _parked(given: shapes.Fields) -> Parked:
    return Parked(
        given("record", _record),
        given("time", shapes.TIME),
        given("by", shapes.text()),
        given("expires", shapes.that(_expires, "a time, never or start", 20)),
    )


def _record(value: object) -> VmRecord:
    return metadata.vm_record(safe_xml.parse(shapes.text(4 * MIB)(value)))


def _expires(text: str) -> bool:
    return text in (NEVER, START) or shapes.is_time(text)


# --- what there is --------------------------------------------------------------------------


@dataclass(frozen=True)
class Unread:
    """A manifest that does not tell what it holds.

    Attributes:
        manifest: its volume.
        newer: whether a newer poclab wrote it; else it is damaged.
        fault: what is wrong with it.
    """

    manifest: str
    newer: bool = False
    fault: str = ""

    @property
    def _name(self) -> VolumeName:
        return VolumeName.parse(self.manifest)

    @property
    def lab(self) -> str:
        """The lab it is about, by its own name."""
        return self._name.lab

    @property
    def path(self) -> str:
        """The VM it is about, as a user names it."""
        return f"{self._name.lab}/{self._name.vm}"

    @property
    def overlay(self) -> str:
        """The system disk it is about, by its own name."""
        name = self._name
        return str(volumes.overlay(name.lab, name.vm, name.generation))

    def may_hold(self, text: str) -> bool:
        """Whether a volume may be one that it holds: any of the VM's that passes."""
        name = volumes.find(text)
        passing = name is not None and name.kind in (Kind.OVERLAY, Kind.SCRATCH)
        return passing and name is not None and name.of(self._name.lab, self._name.vm)


@dataclass(frozen=True)
class ParkedDisks:
    """The parked disks in a pool, of one lab or of all.

    Attributes:
        names: the pool's volumes.
        items: those whose manifests hold, the oldest first.
        unread: the other manifests.
    """

    names: frozenset[str] = frozenset()
    items: tuple[Parked, ...] = ()
    unread: tuple[Unread, ...] = ()

    @classmethod
    def of(cls, pool: Volumes, lab: str | None = None) -> ParkedDisks:
        """Read what there is."""
        names = frozenset(pool.names())
        manifests = volumes.known(sorted(names), Kind.PARKED)
        found = [_load(pool, str(name)) for name in manifests if lab in (None, name.lab)]
        items = sorted((x for x in found if isinstance(x, Parked)), key=lambda x: (x.time, x.name))
        return cls(names, tuple(items), tuple(x for x in found if isinstance(x, Unread)))

    def kept(self, vms: Iterable[ObservedVm]) -> list[Parked]:
        """Those that a VM can be put back on, the oldest first."""
        found = {vm.record.path: vm for vm in vms}
        return [item for item in self.items if self._counts(item, found.get(item.record.path))]

    def _counts(self, item: Parked, vm: ObservedVm | None) -> bool:
        if item.record.overlay not in self.names or stands_on(vm, item.record.overlay):
            return False
        return item.lasting or (vm is not None and not has_run(vm))

    def held(self, vms: Iterable[ObservedVm]) -> frozenset[str]:
        """The volumes that are nobody's garbage: manifests, and the disks they are about."""
        vms = list(vms)
        found = {name for x in self.kept(vms) for name in (x.manifest, *x.disks)}
        for unread in self._holding(vms):
            found |= {unread.manifest, *filter(unread.may_hold, self.names)}
        return frozenset(found | self._under_way(vms))

    def _under_way(self, vms: Iterable[ObservedVm]) -> set[str]:
        """Manifests of disks that a VM was put back on and has not run on yet."""
        waiting = [vm for vm in vms if not has_run(vm)]
        return {
            item.manifest
            for item in self.items
            for vm in waiting
            if stands_on(vm, item.record.overlay)
        }

    def _holding(self, vms: Iterable[ObservedVm]) -> Iterator[Unread]:
        """The manifests that may hold something: not those that were cut short at the start."""
        vms = list(vms)
        for item in self.unread:
            here = item.overlay in self.names
            if here and not any(stands_on(vm, item.overlay) for vm in vms):
                yield item

    def damaged(self, vms: Iterable[ObservedVm]) -> list[Unread]:
        """Manifests that hold something and do not tell what."""
        return [item for item in self._holding(vms) if not item.newer]

    def bases(self, vms: Iterable[ObservedVm]) -> frozenset[str]:
        """The bases that parked disks stand on; all there are where one does not tell."""
        vms = list(vms)
        found = {name for item in self.kept(vms) for name in bases(item.record)}
        if any(self._holding(vms)):
            found |= set(map(str, volumes.known(self.names, Kind.BASE)))
        return frozenset(found)

    def last(self, name: str, vms: Iterable[ObservedVm]) -> int:
        """When a volume goes of what a command clears away: manifests last.

        And last of all that of a disk which a VM was put back on, so that as long as anything
        is to be done the same command finds what it was about.
        """
        on = {x.manifest for x in self.items for vm in vms if stands_on(vm, x.record.overlay)}
        return 2 if name in on else 1 if any(volumes.known([name], Kind.PARKED)) else 0


def _load(pool: Volumes, name: str) -> Parked | Unread | None:
    try:
        item = decode(pool.read(name))
    except GoneError:
        return None
    except ValueError as error:
        return Unread(name, isinstance(error, NewerFormatError), str(error))
    except PoclabError as error:  # too large, or not for this user to read
        return Unread(name, fault=error.why or error.what)
    return item if item.manifest == name else Unread(name, fault=f"it belongs to {item.name}")


def stands_on(vm: ObservedVm | None, overlay: str) -> bool:
    """Whether a VM's next start is on a system disk, or on one over it."""
    if vm is None:
        return False
    return overlay in (vm.record.overlay, *(item.volume for item in vm.record.frozen))


def has_run(vm: ObservedVm) -> bool:
    """Whether QEMU ran on the system disk that a VM is defined with, since it was put on it."""
    running = vm.live is not None and vm.live.overlay == vm.record.overlay
    return running or not vm.record.fresh


# --- parking --------------------------------------------------------------------------------


def park(
    pool: Writable, lot: ParkedDisks, vm: ObservedVm, by: str, lifetime: Lifetime
) -> Parked | None:
    """Write down that a VM's disks are to stay when it is taken off them.

    Args:
        pool: where they are.
        lot: what is parked of its lab.
        vm: the VM as it is.
        by: who takes it off them.
        lifetime: how long they stay.

    Returns:
        What is parked, None where there is nothing to keep.
    """
    own = [item for item in lot.items if item.record.path == vm.record.path]
    if vm.live is None and vm.record.fresh and not vm.record.used:
        # Nothing was ever written to its disk: what matters is the one it was on before.
        waiting = [item for item in lot.kept([vm]) if item in own and not item.lasting]
        if not waiting or lifetime is None:
            return waiting[-1] if waiting else None
        return _write(pool, lot, replace(waiting[-1], expires=lifetime.expiry(waiting[-1].time)))
    record = replace(vm.running, history=())
    _forget_cut_short(pool, own, vm)
    if record.overlay not in lot.names:
        return None
    before = next((item for item in own if item.record.overlay == record.overlay), None)
    if before and before.lasting and lifetime is None:
        return before
    time = _free_time(now(), {item.time for item in own if item is not before})
    expires = lifetime.expiry(time) if lifetime else START
    return _write(pool, lot, Parked(record, time, by, expires))


def _forget_cut_short(pool: Writable, own: Iterable[Parked], vm: ObservedVm) -> None:
    """Forget what a command noted that ended before it took the VM off: it ran on since.

    Else a disk that became a warm state's meanwhile could be taken for one to run on.
    """
    for item in own:
        overlay = item.record.overlay
        if has_run(vm) and stands_on(vm, overlay) and overlay != vm.running.overlay:
            events.step("delete", volume=item.manifest)
            pool.delete(item.manifest)


@dataclass(frozen=True)
class Keep:
    """How long a disk is to be kept.

    Attributes:
        seconds: how long; None for ever.
    """

    seconds: float | None

    def expiry(self, time: str) -> str:
        """When it is over, from a time on."""
        return expiry(time, self.seconds)


# None: until the VM has run on the disk that takes its place.
Lifetime = Keep | None


def _free_time(time: str, taken: set[str]) -> str:
    while time in taken:
        time = _text(_parse(time) + timedelta(seconds=1))
    return time


def _write(pool: Writable, lot: ParkedDisks, item: Parked) -> Parked:
    events.step("park", vm=item.record.name)
    write = pool.rewrite if item.manifest in lot.names else pool.write
    write(item.manifest, encode(item))
    return item
