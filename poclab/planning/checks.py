"""What stands against a change of a VM: data that would be lost, disks of others. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from poclab.core import hints
from poclab.core.plaintext import plain
from poclab.core.units import format_size
from poclab.model.host import ObservedVm
from poclab.model.lab import Vm
from poclab.model.record import VmRecord
from poclab.model.vm_volumes import data_volume


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


def borrowed(target: VmRecord, users: Mapping[str, str], uri: str) -> Iterator[str]:
    """Say which kept data disks of a VM are in use by a domain without a record.

    Args:
        target: what the VM is to be.
        users: domains by the volumes that they stand on.
        uri: the libvirt connection.
    """
    for disk in target.disks:
        user = users.get(data_volume(target, disk)) if disk.keep else None
        if user and user != target.domain:
            again = hints.virsh("domrename", names=[user, target.domain], uri=uri)
            yield (
                f"data disk {disk.name} is in use by domain {plain(user)}; if that is this VM under"
                f" another name: {again}"
            )
