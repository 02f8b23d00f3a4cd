"""Which volumes belong to the records of VMs, and which to nobody. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable

from poclab.model.host import Foreign, ObservedVm
from poclab.model.record import VmRecord
from poclab.model.vm_volumes import data_volume
from poclab.model.volumes import PASSING, of_lab


def volumes(record: VmRecord) -> set[str]:
    """Return the volumes a VM uses, except its version's base."""
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
    """Return volumes of a lab that no VM uses and that nobody was promised to keep.

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
