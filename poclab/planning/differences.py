"""What follows from the records of VMs: differences, histories, the volumes they own. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from poclab.core.units import format_size
from poclab.model.host import ObservedVm
from poclab.model.lab import Vm
from poclab.model.record import VmRecord
from poclab.model.version import Ref
from poclab.model.vm_volumes import data_volume


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


def cold_because(vm: Vm | VmRecord) -> str:
    """Why a VM's memory cannot be kept for warm resets, in words, or an empty string."""
    if any(disk.keep for disk in vm.disks):
        return "the memory would know a kept data disk as it was"
    return "" if vm.ready else "without `ready` nobody knows when to keep its memory"


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
