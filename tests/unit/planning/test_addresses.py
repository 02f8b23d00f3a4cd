"""Addresses: decided before the first boot, and the same ever after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core.errors import UsageError
from poclab.definitions import network as netdef
from poclab.model.lab import Lab, Mode, Nic
from poclab.model.record import NicRecord, VmRecord
from poclab.planning.addresses import assign
from tests.support import make, strategies

Cards = Mapping[str, tuple[NicRecord, ...]]


def recorded(cards: Cards) -> dict[str, VmRecord]:
    """The records of VMs that have these cards."""
    return {name: make.record(name, nics=nics) for name, nics in cards.items()}


def ips(cards: Cards) -> dict[str, list[str]]:
    """The addresses, briefly."""
    return {
        name: [str(nic.ip.ip) for nic in nics if nic.ip is not None] for name, nics in cards.items()
    }


def lan(*names: str, cidr: str = "10.77.1.0/24", **given: str) -> Lab:
    """VMs on one network; keyword arguments are VMs with an address."""
    vms = [make.vm(name, nics=["lan"]) for name in names]
    vms += [make.vm(name, nics=[Nic("lan", make.address(ip))]) for name, ip in given.items()]
    return make.lab(*vms, networks=[make.network(cidr=cidr)])


def test_the_file_order_counts_from_ten() -> None:
    cards = assign(lan("b", "a", "c"), {})
    assert ips(cards) == {"b": ["10.77.1.10"], "a": ["10.77.1.11"], "c": ["10.77.1.12"]}
    assert str(cards["b"][0].ip) == "10.77.1.10/24"
    assert cards["b"][0].mode is Mode.NAT


def test_what_the_file_says_is_taken_and_stepped_around() -> None:
    assert ips(assign(lan("a", "b", given="10.77.1.11"), {})) == {
        "a": ["10.77.1.10"],
        "b": ["10.77.1.12"],
        "given": ["10.77.1.11"],
    }


def test_a_given_mac_is_taken() -> None:
    wanted = make.lab(
        make.vm(nics=[Nic("lan", mac="52:54:00:aa:bb:cc")]), networks=[make.network()]
    )
    assert assign(wanted, {})["vm1"][0].mac == "52:54:00:aa:bb:cc"


def test_a_network_knows_its_mode() -> None:
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network(mode=Mode.ISOLATED)])
    assert assign(wanted, {})["vm1"][0].mode is Mode.ISOLATED


def test_cards_stay_in_the_order_of_the_file() -> None:
    networks = [make.network("a", "10.1.0.0/24"), make.network("b", "10.2.0.0/24")]
    wanted = make.lab(make.vm(nics=["b", "a"]), networks=networks)
    assert [nic.network for nic in assign(wanted, {})["vm1"]] == ["b", "a"]
    assert ips(assign(wanted, {})) == {"vm1": ["10.2.0.10", "10.1.0.10"]}


def test_a_vm_keeps_its_address_when_others_come_and_go() -> None:
    before = assign(lan("a", "b", "c"), {})
    after = assign(lan("z", "c", "b"), recorded(before))
    assert ips(after) == {"z": ["10.77.1.10"], "c": ["10.77.1.12"], "b": ["10.77.1.11"]}


def test_an_address_that_the_file_gives_to_another_is_given_up() -> None:
    before = assign(lan("a", "b"), {})
    after = assign(lan("a", b="10.77.1.10"), recorded(before))
    assert ips(after) == {"a": ["10.77.1.11"], "b": ["10.77.1.10"]}


def test_two_vms_can_change_places() -> None:
    before = assign(lan(a="10.77.1.20", b="10.77.1.21"), {})
    after = assign(lan(a="10.77.1.21", b="10.77.1.20"), recorded(before))
    assert ips(after) == {"a": ["10.77.1.21"], "b": ["10.77.1.20"]}


def test_a_new_cidr_means_new_addresses() -> None:
    before = assign(lan("a", "b"), {})
    for cidr in ("10.78.0.0/24", "10.77.0.0/16", "10.77.1.0/25"):
        after = assign(lan("a", "b", cidr=cidr), recorded(before))
        nic = after["a"][0]
        assert nic.ip is not None
        assert nic.ip.network == IPv4Network(cidr)


@pytest.mark.parametrize(("prefix", "room"), [(29, 5), (28, 13), (27, 29), (26, 61), (25, 125)])
def test_every_address_of_a_network_can_be_used(prefix: int, room: int) -> None:
    names = [f"vm{index}" for index in range(room)]
    cidr = f"10.77.1.0/{prefix}"
    cards = assign(lan(*names, cidr=cidr), {})
    found = [nic.ip.ip for nics in cards.values() for nic in nics if nic.ip]
    network = IPv4Network(cidr)
    assert len(set(found)) == room
    assert set(found) <= set(network.hosts()) - {netdef.gateway(network)}
    with pytest.raises(UsageError, match=f"{room} addresses") as caught:
        assign(lan(*names, "more", cidr=cidr), {})
    assert "no address left for more" in caught.value.what
    assert caught.value.fix


def test_derived_macs_are_stable_and_differ_by_lab_vm_and_network() -> None:
    assert netdef.mac("acme", "vm1", "lan") == netdef.mac("acme", "vm1", "lan")
    found = {
        netdef.mac(lab, vm, network)
        for lab in ("acme", "other")
        for vm in ("vm1", "vm2")
        for network in ("lan", "dmz", "")
    }
    assert len(found) == 12
    assert all(mac.startswith("52:54:00:") for mac in found)


def test_a_mac_that_the_file_gives_to_another_card_is_not_derived_again() -> None:
    derived = netdef.mac("acme", "a", "lan")
    wanted = make.lab(
        make.vm("a", nics=["lan"]),
        make.vm("b", nics=[Nic("lan", mac=derived)]),
        networks=[make.network()],
    )
    cards = assign(wanted, {})
    assert cards["b"][0].mac == derived
    assert cards["a"][0].mac == netdef.mac("acme", "a", "lan", 1)


def test_derived_macs_that_collide_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "poclab.planning.addresses.mac",
        lambda _lab, _vm, _net, attempt: f"52:54:00:00:00:{attempt:02x}",
    )
    cards = assign(lan("a", "b", "c"), {})
    assert [nics[0].mac[-2:] for nics in cards.values()] == ["00", "01", "02"]


@given(strategies.labs())
def test_addresses_and_macs_are_never_given_twice_and_never_change(wanted: Lab) -> None:
    cards = assign(wanted, {})
    nics = [nic for each in cards.values() for nic in each]
    assert max(Counter(nic.mac for nic in nics).values(), default=1) == 1
    assert max(Counter((nic.network, nic.ip) for nic in nics).values(), default=1) == 1
    cidrs = {network.name: network.cidr for network in wanted.networks}
    for nic in nics:
        assert nic.ip is not None
        assert nic.ip.network == cidrs[nic.network]
        assert nic.ip.ip in set(cidrs[nic.network].hosts()) - {netdef.gateway(nic.ip.network)}
    assert assign(wanted, recorded(cards)) == cards
    turned = replace(wanted, vms=wanted.vms[::-1], networks=wanted.networks[::-1])
    assert assign(turned, recorded(cards)) == cards


@given(strategies.labs(), st.data())
def test_removing_a_vm_moves_no_other(wanted: Lab, data: st.DataObject) -> None:
    cards = assign(wanted, {})
    left = tuple(vm for vm in wanted.vms if data.draw(st.booleans()))
    kept = assign(replace(wanted, vms=left), recorded(cards))
    assert kept == {vm.name: cards[vm.name] for vm in left}
