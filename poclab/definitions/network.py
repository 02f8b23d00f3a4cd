"""Lab networks, and the network cards of VMs: addresses, slots, specifications. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from poclab.core.errors import UsageError
from poclab.core.plaintext import shown
from poclab.definitions import metadata
from poclab.definitions.profiles import DEVICES, HostTraits
from poclab.definitions.xml import NetworkSpec
from poclab.model.lab import Mode
from poclab.model.names import check_name
from poclab.model.record import HostEntry, NetworkRecord, NicRecord, VmRecord
from poclab.model.version import Profile

if TYPE_CHECKING:
    from collections.abc import Iterable


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
