"""What follows from the records of VMs: differences, histories, the volumes they own. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from poclab import hints
from poclab.model import Foreign, HistoryEntry, ObservedVm, Ref, Vm, VmRecord
from poclab.names import plain
from poclab.units import format_size
from poclab.virt.design import data_volume
from poclab.volumes import PASSING, of_lab


@dataclass(frozen=True)
class Stamp:
    """What goes into new records: when, by whom, with which key."""

    time: str
    by: str
    ssh_key: str


def remade(record: VmRecord, action: str, stamp: Stamp) -> VmRecord:
    """The record with a new system disk to come: fresh firmware, today's key, history."""
    fresh = replace(
        record,
        overlay="",
        frozen=(),
        in_place=(),
        fresh=True,
        used=False,
        ssh_key=stamp.ssh_key,
    )
    return replace(fresh, history=(*record.history, entry(fresh, action, stamp)))


def entry(record: VmRecord, action: str, stamp: Stamp) -> HistoryEntry:
    """A line of a VM's history."""
    return HistoryEntry(stamp.time, action, record.version, record.digest, stamp.by)


def became_ready(record: VmRecord, start: str, seconds: float) -> VmRecord:
    """The record whose latest entry says how and when the VM became ready, to a tenth."""
    if not record.history:
        return record
    *before, last = record.history
    noted = replace(last, start=start, seconds=round(seconds, 1))
    return replace(record, history=(*before, noted))


def previous(record: VmRecord) -> HistoryEntry | None:
    """The latest entry of another version than the one a VM is on now, None without one."""
    now = (record.version, record.digest)
    others = (item for item in reversed(record.history) if (item.version, item.digest) != now)
    return next(others, None)


def drift(vm: ObservedVm, stored: Mapping[Ref, str] | None = None) -> Iterator[str]:
    """How what a VM runs differs from what it was to run, in words.

    Args:
        vm: the VM.
        stored: the digests that versions have in the store, by name; None where it is not known.
    """
    runs, wanted = vm.running, vm.record.wanted
    if wanted != runs.runs:
        yield f"file asks {wanted.tag if wanted.image == runs.version.image else wanted}"
    if stored is not None:
        now = stored.get(runs.version)
        if now is None:
            yield f"{runs.version.tag} is gone"
        elif now != runs.digest:
            yield f"{runs.version.tag} is another disk now"


def hardware(record: VmRecord) -> tuple[object, ...]:
    """The part of a record that a running guest does not take over before it starts anew."""
    disks = tuple((data_volume(record, disk), disk.size) for disk in record.disks)
    return (
        record.overlay,
        record.cpus,
        record.memory,
        record.profile,
        record.tpm,
        record.nics,
        disks,
        record.forwards,
        record.user,  # the guest makes this user's authorized_keys when it boots
    )


def volumes(record: VmRecord) -> set[str]:
    """The volumes a VM stands on, its version's base aside."""
    data = (data_volume(record, disk) for disk in record.disks)
    return {record.overlay, *data, *(item.volume for item in record.frozen)}


def lost(record: VmRecord, names: Container[str]) -> bool:
    """Whether the system disk is gone, or what a warm state put below the disks."""
    needed = (record.overlay, *(item.volume for item in record.frozen))
    return any(name not in names for name in needed)


def garbage(
    lab: str,
    names: Iterable[str],
    vms: Iterable[ObservedVm],
    foreign: Foreign | None = None,
    held: Iterable[str] = (),
) -> list[str]:
    """Volumes of a lab that no VM stands on and that nobody was promised to keep.

    Only system disks and data disks without `keep` are ever garbage: a kept data disk has a
    name of its own (`data.`) that is not looked at here.

    Args:
        lab: the lab's name.
        names: the volumes there are.
        vms: the VMs there are; both their defined and their running disks count.
        foreign: what is in no record; what its domains stand on or carries their name is left
            alone.
        held: volumes of warm states and of parked disks.
    """
    foreign = foreign or Foreign()
    used = {*foreign.volumes, *held}
    for vm in vms:
        used |= volumes(vm.record)
        if vm.live:
            used |= volumes(vm.live)
    return [
        str(name)
        for name in of_lab(names, lab, *PASSING)
        if str(name) not in used and f"{name.lab}.{name.vm}" not in foreign.domains
    ]


def cold_because(vm: Vm | VmRecord) -> str:
    """Why a VM's memory cannot be kept for warm resets, in words, or an empty string."""
    if any(disk.keep for disk in vm.disks):
        return "the memory would know a kept data disk as it was"
    return "" if vm.ready else "without `ready` nobody knows when to keep its memory"


def thawed(found: ObservedVm | None, vm: Vm, *, new_disk: bool) -> Iterator[str]:
    """Data disks to be kept from now on that lie over one of a warm state's, in words.

    Args:
        found: the VM as it is, if there is one.
        vm: the VM as asked for.
        new_disk: it gets a new system disk anyway.
    """
    below = {item.disk for item in found.record.frozen} if found and not new_disk else set()
    for disk in vm.disks:
        if found and disk.keep and disk.name in below:
            yield (
                f"data disk {disk.name} cannot be kept from now on: it lies over that of a warm"
                f" state; first: poclab reset {found.record.path} --no-warm"
            )


def shrunk(found: ObservedVm | None, vm: Vm, *, new_disk: bool = False) -> Iterator[str]:
    """Disks that the file makes smaller than they are, in words.

    Args:
        found: the VM as it is, if there is one.
        vm: the VM as asked for.
        new_disk: it gets a new system disk anyway, of whatever size.
    """
    if found is None:
        return
    before, after = found.record.disk_size or 0, vm.disk_size
    if after is not None and after < before and not new_disk:
        yield (
            f"the system disk has {format_size(before)} and cannot shrink to {format_size(after)}"
        )
    sizes = {disk.name: disk.size for disk in found.record.disks}
    for disk in vm.disks:
        anew = new_disk and not disk.keep
        if disk.size < sizes.get(disk.name, 0) and not anew:
            yield (
                f"data disk {disk.name} has {format_size(sizes[disk.name])}"
                f" and cannot shrink to {format_size(disk.size)}"
            )


def returning(target: VmRecord, found: ObservedVm | None, kept: Mapping[str, int]) -> Iterator[str]:
    """Data disks kept from an earlier VM that the file makes smaller than they are, in words.

    Args:
        target: what the VM is to be.
        found: the VM as it is, if there is one.
        kept: bytes that a guest sees of the kept data disks, by volume.
    """
    own = {disk.name for disk in found.record.disks if disk.keep} if found else set()
    for disk in target.disks:
        there = kept.get(data_volume(target, disk), 0) if disk.keep else 0
        if disk.size < there and disk.name not in own:
            yield (
                f"data disk {disk.name} was kept from before, has {format_size(there)}"
                f" and cannot shrink to {format_size(disk.size)}"
            )


def overwritten(found: ObservedVm | None, vm: Vm, names: Container[str]) -> Iterator[str]:
    """Kept data disks of an earlier VM that `keep: true` on another disk would replace, in words.

    Args:
        found: the VM as it is, if there is one.
        vm: the VM as asked for.
        names: the volumes there are.
    """
    passing = {disk.name: disk for disk in found.record.disks if not disk.keep} if found else {}
    for disk in vm.disks:
        before = passing.get(disk.name)
        if found and disk.keep and before:
            kept = data_volume(found.record, disk)
            if kept in names and data_volume(found.record, before) in names:
                yield (
                    f"data disk {disk.name} cannot be kept from now on: one of that name was kept"
                    f" before ({kept}); give it another name, or delete that volume"
                )


def borrowed(target: VmRecord, users: Mapping[str, str]) -> Iterator[str]:
    """Kept data disks of a VM that a domain without a record stands on, in words.

    Args:
        target: what the VM is to be.
        users: domains by the volumes that they stand on.
    """
    for disk in target.disks:
        user = users.get(data_volume(target, disk)) if disk.keep else None
        if user and user != target.domain:
            again = hints.virsh("domrename", names=[user, target.domain])
            yield (
                f"data disk {disk.name} is in use by domain {plain(user)}; if that is this VM under"
                f" another name: {again}"
            )


def disk_differences(before: VmRecord, target: VmRecord) -> Iterator[str]:
    """How the data disks differ, in words."""
    old = {disk.name: disk for disk in before.disks}
    new = {disk.name: disk for disk in target.disks}
    for name, disk in new.items():
        if name not in old:
            yield f"new data disk {name}"
            continue
        if old[name].size != disk.size:
            yield f"data disk {name} {format_size(old[name].size)} -> {format_size(disk.size)}"
        if old[name].keep != disk.keep:
            yield f"data disk {name} is {'kept' if disk.keep else 'no longer kept'} from now on"
    for name, disk in old.items():
        if name not in new:
            yield f"data disk {name} no longer asked for" + (" (kept)" if disk.keep else "")
    common = [name for name in old if name in new]
    if common != [name for name in new if name in old]:
        yield "another order of data disks"


def record_differences(before: VmRecord, target: VmRecord) -> Iterator[str]:
    """What differs that no guest notices, in words."""
    for name in ("wanted", "after", "ready", "disk_size", "warm"):
        if getattr(before, name) != getattr(target, name):
            yield f"{name} changed in the lab file"


def differences(before: VmRecord, target: VmRecord) -> list[str]:
    """What needs a new definition, in words."""
    lines: list[str] = []
    if before.profile != target.profile:
        lines.append(f"profile {before.profile.value} -> {target.profile.value}")
    if before.user != target.user:
        lines.append(f"user {before.user} -> {target.user}")
    if before.cpus != target.cpus:
        lines.append(f"cpus {before.cpus} -> {target.cpus}")
    if before.memory != target.memory:
        lines.append(f"memory {format_size(before.memory)} -> {format_size(target.memory)}")
    if before.tpm != target.tpm:
        lines.append("a TPM" if target.tpm else "no TPM any more")
    if before.nics != target.nics:
        addresses = f"networks {_nics(before)} -> {_nics(target)}"
        same = _nics(before) == _nics(target)
        lines.append("another mode or MAC address of networks" if same else addresses)
    if before.forwards != target.forwards:
        lines.append(f"ports {_forwards(before)} -> {_forwards(target)}")
    if target.disk_size is not None and before.disk_size != target.disk_size:
        lines.append(f"system disk of {format_size(target.disk_size)}")
    lines += disk_differences(before, target)
    return lines


def _nics(record: VmRecord) -> str:
    return (
        ", ".join(f"{nic.network} {nic.ip.ip if nic.ip else ''}" for nic in record.nics) or "none"
    )


def _forwards(record: VmRecord) -> str:
    return ", ".join(f"{forward.host}:{forward.guest}" for forward in record.forwards) or "none"
