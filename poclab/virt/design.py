"""Policy: which devices a VM gets, from its record and what the host can do. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from poclab import volumes
from poclab.errors import UsageError
from poclab.model import DataDisk, HostEntry, Mode, NetworkRecord, NicRecord, Profile, VmRecord
from poclab.names import check_name, shown
from poclab.virt import metadata
from poclab.virt.xml import DiskSpec, DomainSpec, InterfaceSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True)
class Devices:
    """The devices a profile means.

    Attributes:
        machine: the machine type's alias.
        uefi: UEFI or BIOS.
        disk_bus: the bus of every disk.
        disk_prefix: how disks are named on that bus.
        nic: the network card in libvirt's words.
        nic_device: the same as a QEMU device.
        virtio: whether the guest drives virtio devices from the first boot on.
        clock: what the guest takes the hardware clock for.
        tpm: how a TPM is wired to it.
    """

    machine: str
    uefi: bool
    disk_bus: str
    disk_prefix: str
    nic: str
    nic_device: str
    virtio: bool
    clock: str
    tpm: str


DEVICES = {
    Profile.LINUX: Devices(
        "q35", True, "virtio", "vd", "virtio", "virtio-net-pci", True, "utc", "tpm-crb"
    ),
    # Windows has no virtio drivers before someone installs them.
    Profile.WINDOWS: Devices(
        "q35", True, "sata", "sd", "e1000e", "e1000e", False, "localtime", "tpm-crb"
    ),
    Profile.LEGACY: Devices("pc", False, "ide", "hd", "e1000", "e1000", False, "utc", "tpm-tis"),
}  # fmt: skip

# IDE has four places, SATA on q35 six, virtio-blk one a PCI slot: this is what a lab may ask for.
DISK_LIMIT = {Profile.LINUX: 20, Profile.WINDOWS: 6, Profile.LEGACY: 4}


# Any namespace of our own for uuid5 (RFC 4122, 4.3).
_GENIDS = UUID("6f1c1f4e-9f7b-4f7e-8d0c-3d1d6c1f8a52")


@dataclass(frozen=True)
class HostTraits:
    """What the design depends on besides the record.

    Attributes:
        session: qemu:///session (user networking) or a system daemon (libvirt networks).
        kvm: whether domains use KVM.
        owner: who the host belongs to, so that two users' segments differ.
    """

    session: bool
    kvm: bool
    owner: str


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
        bases: the volumes the system disk's overlay stands on, the top first.
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


def data_volume(record: VmRecord, disk: DataDisk) -> str:
    """The volume of a data disk.

    A kept one has a name that lasts. One that goes with the system disk carries the overlay's
    own mark, so that a reset makes a new one beside the old, and never mixes the two up. What
    the mark has after a `-` tells overlays apart that have the same data disks (see `next_mark`).
    """
    if disk.keep:
        return str(volumes.data(record.lab, record.name, disk.name))
    mark = volumes.generation(record.overlay)
    return str(volumes.scratch(record.lab, record.name, disk.name, mark))


def next_mark(overlay: str, more: str) -> str:
    """The mark of a system disk that takes another's place and keeps its data disks."""
    return f"{volumes.generation(overlay).partition('-')[0]}-{more}"


def overlay_volume(lab: str, vm: str, mark: str) -> str:
    """The volume of a system disk; the mark tells it from the one before."""
    return str(volumes.overlay(lab, vm, mark))


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

# PCI slots for cards that libvirt does not know of: it fills the root bus from below, and the
# chipset's own functions begin at 0x1b.
FIRST_SLOT = 0x10
SESSION_NIC_LIMIT = 10

# QEMU's user network is on 10.0.2.0/24 unless told otherwise; a lab may use that itself.
USER_NETWORKS = tuple(
    IPv4Network(text) for text in ("10.0.2.0/24", "172.31.254.0/24", "192.168.254.0/24")
)


def session_network(record: VmRecord, traits: HostTraits) -> Iterable[str]:
    """QEMU arguments for a VM's networks where no bridge can be made.

    One card on QEMU's user network carries the forwarded ports (and the way out, unless all
    the VM's networks are isolated); one card a lab network is on a multicast segment that is
    bound to 127.0.0.1. libvirt's own `<interface type='mcast'>` cannot bind to an address: its
    frames would leave the host by the default route.
    """
    device = DEVICES[record.profile].nic_device
    check_name("VM", record.name)  # a comma in it would begin another option of QEMU's
    nat = any(nic.mode is not Mode.ISOLATED for nic in record.nics)
    options = ["user", "id=poclabuser", f"net={user_network(record.nics)}"]
    options.append(f"hostname={record.name}")  # what QEMU's DHCP server tells the guest
    if not nat and record.nics:
        options.append("restrict=on")
    options += [f"hostfwd=tcp:127.0.0.1:{f.host}-:{f.guest}" for f in record.forwards]
    yield from ("-netdev", ",".join(options))
    address = mac(record.lab, record.name, "")
    yield from ("-device", _card(device, "poclabuser", address, FIRST_SLOT, record.profile))
    for index, nic in enumerate(record.nics):
        group, port = segment(traits.owner, record.lab, nic.network)
        name = f"poclab{index}"
        netdev = f"socket,id={name},mcast={group}:{port},localaddr=127.0.0.1"
        card = _card(device, name, nic.mac, FIRST_SLOT + 1 + index, record.profile)
        yield from ("-netdev", netdev, "-device", card)


_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def _card(device: str, netdev: str, address: str, slot: int, profile: Profile) -> str:
    if not _MAC.fullmatch(address):
        raise UsageError(f"invalid MAC address {shown(address)}")
    bus = "pcie.0" if DEVICES[profile].machine == "q35" else "pci.0"
    return f"{device},netdev={netdev},mac={address},romfile=,bus={bus},addr={slot:#x}"


def user_network(nics: Iterable[NicRecord]) -> IPv4Network:
    """A range for QEMU's user network that none of the VM's lab networks overlaps."""
    taken = [nic.ip.network for nic in nics if nic.ip]
    free = (net for net in USER_NETWORKS if not any(net.overlaps(other) for other in taken))
    return next(free, USER_NETWORKS[0])


def segment(owner: str, lab: str, network: str) -> tuple[IPv4Address, int]:
    """The multicast group and port of a lab network's segment.

    Derived, so that no state is needed: 23 bits of group within 239.0.0.0/8 (administratively
    scoped, RFC 2365) and 14 bits of port keep owners, labs and networks apart.
    """
    seed = hashlib.sha256(f"{owner}/{lab}/{network}".encode()).digest()
    group = 0xEF000000 | 0x00800000 | (int.from_bytes(seed[:3]) & 0x7FFFFF)
    port = 32768 + (int.from_bytes(seed[3:5]) & 0x3FFF)
    return IPv4Address(group), port


# --- networks of a system daemon ----------------------------------------------------------


def mac(lab: str, vm: str, network: str, attempt: int = 0) -> str:
    """A MAC address that stays the same for a VM's place on a network.

    52:54:00 is the prefix QEMU and libvirt give to virtual cards.
    """
    seed = hashlib.sha256(f"{lab}/{vm}/{network}/{attempt}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in seed[:3])


def bridge_name(lab: str, network: str) -> str:
    """The bridge of a lab network: 11 characters, where the kernel allows 15 (IFNAMSIZ)."""
    return "poc" + hashlib.sha256(f"{lab}/{network}".encode()).hexdigest()[:8]


def gateway(cidr: IPv4Network) -> IPv4Address:
    """The host's address on a network: the first usable one."""
    return cidr.network_address + 1


def network_spec(record: NetworkRecord, hosts: tuple[HostEntry, ...]) -> NetworkSpec:
    """Design a lab network with these addresses reserved."""
    return NetworkSpec(
        name=record.libvirt_name,
        bridge=bridge_name(record.lab, record.name),
        nat=record.mode is Mode.NAT,
        gateway=gateway(record.cidr),
        cidr=record.cidr,
        domain=record.lab,
        hosts=hosts,
        metadata=(metadata.network_element(record),),
    )


def detour(record: NetworkRecord) -> NetworkRecord:
    """A network beside a lab network, for a moment, to plug cards into it anew.

    No lab file can name it: a network's name has no dot.
    """
    return replace(record, name=f"{record.name}{metadata.DETOUR}", mode=Mode.ISOLATED)


def detour_spec(record: NetworkRecord) -> NetworkSpec:
    """Design such a network: a bridge and nothing else."""
    return replace(network_spec(record, ()), gateway=None)


def reservations(network: str, vms: Iterable[VmRecord]) -> Iterable[HostEntry]:
    """The addresses to reserve on a network."""
    for vm in vms:
        for nic in vm.nics:
            if nic.network == network and nic.ip is not None:
                yield HostEntry(nic.mac, vm.name, nic.ip.ip)
