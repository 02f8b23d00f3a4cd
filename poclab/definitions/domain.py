"""Policy: which devices a VM gets, from its record and what the host can do. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from poclab.definitions import metadata
from poclab.definitions.network import session_network
from poclab.definitions.profiles import DEVICES, Devices, HostTraits
from poclab.definitions.xml import DiskSpec, DomainSpec, InterfaceSpec
from poclab.model.record import VmRecord
from poclab.model.vm_volumes import data_volume

if TYPE_CHECKING:
    from collections.abc import Callable


# Any namespace of our own for uuid5 (RFC 4122, 4.3).
_GENIDS = UUID("6f1c1f4e-9f7b-4f7e-8d0c-3d1d6c1f8a52")


def domain_spec(
    record: VmRecord,
    traits: HostTraits,
    *,
    uuid: str | None,
    bases: tuple[str, ...],
    path: Callable[[str], str],
    console_log: str | None,
    oem_strings: tuple[str, ...] = (),
) -> DomainSpec:
    """Design the domain of a VM.

    Args:
        record: what the VM is to be.
        traits: what the host can do.
        uuid: the domain's UUID where it exists already.
        bases: the volumes below the system disk's overlay, the top first.
        path: from a volume's name to its file.
        console_log: where the serial console is copied to.
        oem_strings: SMBIOS strings for the guest.
    """
    devices = DEVICES[record.profile]
    interfaces: tuple[InterfaceSpec, ...] = ()
    qemu_args: tuple[str, ...] = ()
    if traits.session:
        qemu_args = tuple(session_network(record, traits))
    else:
        interfaces = tuple(
            InterfaceSpec(f"{record.lab}.{nic.network}", nic.mac, devices.nic)
            for nic in record.nics
        )
    return DomainSpec(
        name=record.domain,
        uuid=uuid,
        type="kvm" if traits.kvm else "qemu",
        machine=devices.machine,
        uefi=devices.uefi,
        cpu_mode="host-passthrough" if traits.kvm else "maximum",
        cpus=record.cpus,
        memory=record.memory,
        clock=devices.clock,
        disks=_disks(record, devices, bases, path),
        interfaces=interfaces,
        qemu_args=qemu_args,
        oem_strings=oem_strings,
        console_log=console_log,
        usb=not devices.virtio,
        virtio=devices.virtio,
        # The same as long as the disk is: a guest with another one makes its random numbers and
        # its identity in a domain anew.
        genid=str(uuid5(_GENIDS, record.overlay)) if devices.uefi else None,
        tpm=devices.tpm if record.tpm else None,
        metadata=(metadata.vm_element(record),),
    )


# What comes after the name of a domain that stands in for another one: the other is about to be
# defined anew, and a record without a domain would leave its disks to nobody.
STAND_IN = ".stand-in"


def stand_in(spec: DomainSpec) -> DomainSpec:
    """Design a domain that stands in for one with a UUID, and never runs.

    Its UUID leads back to the other's (see `stood_in_for`).
    """
    uuid = stood_in_for(spec.uuid) if spec.uuid else None
    return replace(spec, name=f"{spec.name}{STAND_IN}", uuid=uuid, tpm=None)


def stood_in_for(uuid: str) -> str:
    """The UUID of the domain that one stands in for, and the reverse: the last bit differs."""
    return str(UUID(int=UUID(uuid).int ^ 1))


def _disks(
    record: VmRecord, devices: Devices, bases: tuple[str, ...], path: Callable[[str], str]
) -> tuple[DiskSpec, ...]:
    def target(index: int) -> str:
        return devices.disk_prefix + "abcdefghijklmnopqrstuvwxyz"[index]

    frozen = {item.disk: (path(item.volume),) for item in record.frozen}
    below = (*frozen.get("", ()), *map(path, bases))
    system = DiskSpec(path(record.overlay), target(0), devices.disk_bus, backing=below, boot=True)
    data = (
        DiskSpec(
            path(data_volume(record, disk)),
            target(index),
            devices.disk_bus,
            backing=frozen.get(disk.name, ()),
            serial=disk.name[:20],  # virtio-blk and ATA serial numbers have 20 characters
        )
        for index, disk in enumerate(record.disks, start=1)
    )
    return (system, *data)


# --- networks of qemu:///session ---------------------------------------------------------


# --- networks of a system daemon ----------------------------------------------------------
