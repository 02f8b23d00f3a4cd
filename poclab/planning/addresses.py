"""Addresses for the network cards of a lab: given ones kept, the others assigned. Pure.

Everything is decided before the first boot, so nobody ever waits for a lease to learn it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import chain

from poclab.core.errors import UsageError
from poclab.definitions.network import gateway, mac
from poclab.model.lab import Lab, Nic, Vm
from poclab.model.record import NicRecord, VmRecord

# The first addresses are left to what engineers like to number by hand.
_FIRST = 10


def assign(lab: Lab, existing: Mapping[str, VmRecord]) -> dict[str, tuple[NicRecord, ...]]:
    """Give every network card of a lab its MAC and IP address.

    What the file says is taken as it is; what a VM had before stays; the rest gets the lowest
    free address of its network, in the order of the file.

    Args:
        lab: the lab as asked for.
        existing: the records of the VMs that are there, by name.

    Returns:
        The cards of each VM, by the VM's name.

    Raises:
        UsageError: a network has fewer addresses than cards.
    """
    macs = _macs(lab)
    before = {
        (record.name, nic.network): nic.ip
        for record in existing.values()
        for nic in record.nics
        if nic.ip is not None
    }
    ips: dict[tuple[str, str], IPv4Address] = {}
    for network in lab.networks:
        cards = [(vm, nic) for vm in lab.vms for nic in vm.networks if nic.network == network.name]
        ips |= _addresses(network.cidr, cards, before)
    networks = {network.name: network for network in lab.networks}
    return {
        vm.name: tuple(
            NicRecord(
                nic.network,
                macs[vm.name, nic.network],
                IPv4Interface((ips[vm.name, nic.network], networks[nic.network].cidr.prefixlen)),
                networks[nic.network].mode,
            )
            for nic in vm.networks
        )
        for vm in lab.vms
    }


def _macs(lab: Lab) -> dict[tuple[str, str], str]:
    taken = {nic.mac for vm in lab.vms for nic in vm.networks if nic.mac}
    macs: dict[tuple[str, str], str] = {}
    for vm in lab.vms:
        for nic in vm.networks:
            found = nic.mac or _free_mac(lab.name, vm.name, nic.network, taken)
            taken.add(found)
            macs[vm.name, nic.network] = found
    return macs


def _free_mac(lab: str, vm: str, network: str, taken: set[str]) -> str:
    attempt = 0
    while (candidate := mac(lab, vm, network, attempt)) in taken:
        attempt += 1
    return candidate


def _addresses(
    cidr: IPv4Network,
    cards: Iterable[tuple[Vm, Nic]],
    before: Mapping[tuple[str, str], IPv4Interface],
) -> dict[tuple[str, str], IPv4Address]:
    cards = list(cards)
    taken = {gateway(cidr)} | {nic.ip for _, nic in cards if nic.ip}
    found: dict[tuple[str, str], IPv4Address] = {}
    for vm, nic in cards:
        key = (vm.name, nic.network)
        had = before.get(key)
        if nic.ip:
            found[key] = nic.ip
        elif had and had.network == cidr and had.ip not in taken:
            found[key] = had.ip
            taken.add(had.ip)
    free = _free(cidr, taken)
    for vm, nic in cards:
        key = (vm.name, nic.network)
        if key not in found:
            candidate = next(free, None)
            if candidate is None:
                raise UsageError(
                    f"network {nic.network} has no address left for {vm.name}",
                    why=f"{cidr} has {cidr.num_addresses - 3} addresses for VMs",
                    fix="give the network a larger cidr",
                )
            found[key] = candidate
    return found


def _free(cidr: IPv4Network, taken: set[IPv4Address]) -> Iterator[IPv4Address]:
    first = _FIRST if cidr.num_addresses > 4 * _FIRST else 2
    order = chain(range(first, cidr.num_addresses - 1), range(2, first))
    return (ip for offset in order if (ip := cidr.network_address + offset) not in taken)
