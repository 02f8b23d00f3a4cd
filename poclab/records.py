"""What follows from the records of VMs: differences, histories, the volumes they own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from poclab.model import HistoryEntry, ObservedVm, Vm, VmRecord
from poclab.units import format_size
from poclab.virt.design import data_volume


@dataclass(frozen=True)
class Stamp:
    """What goes into new records: when, by whom, with which key."""

    time: str
    by: str
    ssh_key: str


def remade(record: VmRecord, action: str, stamp: Stamp) -> VmRecord:
    """The record with a new system disk to come: fresh firmware, today's key, history."""
    fresh = replace(record, overlay="", fresh=True, ssh_key=stamp.ssh_key)
    return replace(fresh, history=(*record.history, entry(fresh, action, stamp)))


def entry(record: VmRecord, action: str, stamp: Stamp) -> HistoryEntry:
    """A line of a VM's history."""
    return HistoryEntry(stamp.time, action, record.version, record.digest, stamp.by)


def hardware(record: VmRecord) -> tuple[object, ...]:
    """The part of a record that a running guest does not take over before it starts anew."""
    disks = tuple((data_volume(record, disk), disk.size) for disk in record.disks)
    return (
        record.overlay,
        record.cpus,
        record.memory,
        record.profile,
        record.nics,
        disks,
        record.disk_size,
        record.forwards,
    )


def volumes(record: VmRecord) -> set[str]:
    """The volumes a VM stands on, its version's base aside."""
    return {record.overlay, *(data_volume(record, disk) for disk in record.disks)}


def garbage(
    lab: str, names: Iterable[str], vms: Iterable[ObservedVm], foreign: Iterable[str] = ()
) -> list[str]:
    """Volumes of a lab that no VM stands on and that nobody was promised to keep.

    Only system disks and data disks without `keep` are ever garbage: a kept data disk has a
    name of its own (`data.`) that is not looked at here.

    Args:
        lab: the lab's name.
        names: the volumes there are.
        vms: the VMs there are; both their defined and their running disks count.
        foreign: domains whose record cannot be read; what carries their name is left alone.
    """
    used: set[str] = set()
    for vm in vms:
        used |= volumes(vm.record)
        if vm.live:
            used |= volumes(vm.live)
    prefixes = (f"overlay.{lab}.", f"scratch.{lab}.")
    left_alone = tuple(f"{kind}.{name}." for name in foreign for kind in ("overlay", "scratch"))
    return [
        name
        for name in names
        if name.startswith(prefixes) and name not in used and not name.startswith(left_alone)
    ]


def shrunk(found: ObservedVm | None, vm: Vm) -> Iterator[str]:
    """Data disks that the file makes smaller than they are, in words."""
    if found is None:
        return
    sizes = {disk.name: disk.size for disk in found.record.disks}
    for disk in vm.disks:
        if disk.size < sizes.get(disk.name, 0):
            yield (
                f"data disk {disk.name} has {format_size(sizes[disk.name])}"
                f" and cannot shrink to {format_size(disk.size)}"
            )


def disk_differences(before: VmRecord, target: VmRecord) -> Iterator[str]:
    """How the data disks differ, in words."""
    old = {disk.name: disk for disk in before.disks}
    new = {disk.name: disk for disk in target.disks}
    for name, disk in new.items():
        if name not in old:
            yield f"new data disk {name}"
        elif old[name].size != disk.size:
            yield f"data disk {name} {format_size(old[name].size)} -> {format_size(disk.size)}"
        elif old[name].keep != disk.keep:
            yield f"data disk {name} is {'kept' if disk.keep else 'no longer kept'} from now on"
    for name, disk in old.items():
        if name not in new:
            yield f"data disk {name} no longer asked for" + (" (kept)" if disk.keep else "")
    common = [name for name in old if name in new]
    if common != [name for name in new if name in old]:
        yield "another order of data disks"


def record_differences(before: VmRecord, target: VmRecord) -> Iterator[str]:
    """What differs that no guest notices, in words."""
    for name in ("wanted", "user", "after", "ready"):
        if getattr(before, name) != getattr(target, name):
            yield f"{name} changed in the lab file"


def differences(before: VmRecord, target: VmRecord) -> list[str]:
    """What needs a new definition, in words."""
    lines: list[str] = []
    if before.cpus != target.cpus:
        lines.append(f"cpus {before.cpus} -> {target.cpus}")
    if before.memory != target.memory:
        lines.append(f"memory {format_size(before.memory)} -> {format_size(target.memory)}")
    if before.nics != target.nics:
        lines.append(f"networks {_nics(before)} -> {_nics(target)}")
    if before.forwards != target.forwards:
        lines.append(f"ports {_forwards(before)} -> {_forwards(target)}")
    if before.disk_size != target.disk_size:
        lines.append("another size of the system disk")
    lines += disk_differences(before, target)
    return lines


def _nics(record: VmRecord) -> str:
    return (
        ", ".join(f"{nic.network} {nic.ip.ip if nic.ip else ''}" for nic in record.nics) or "none"
    )


def _forwards(record: VmRecord) -> str:
    return ", ".join(f"{forward.host}:{forward.guest}" for forward in record.forwards) or "none"
