"""Policy: devices by profile, networks of a session, names of volumes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.definitions import domain, profiles
from poclab.definitions import network as netdef
from poclab.definitions.domain import domain_spec
from poclab.definitions.profiles import DEVICES, HostTraits
from poclab.definitions.xml import DomainSpec
from poclab.model import vm_volumes
from poclab.model.lab import Forward, Mode
from poclab.model.record import VmRecord
from poclab.model.version import Profile
from tests.support import make, strategies

SESSION = HostTraits(session=True, kvm=False, owner="1000")


def spec(record: VmRecord, traits: HostTraits = SESSION) -> DomainSpec:
    """The design of a VM."""
    return domain_spec(
        record, traits, uuid=None, bases=("base.x.qcow2",), path="/pool/{}".format, console_log=None
    )


def arguments(record: VmRecord) -> list[tuple[str, str]]:
    """QEMU's options for a session's networks, in pairs."""
    words = list(netdef.session_network(record, SESSION))
    return list(zip(words[::2], words[1::2], strict=True))


def netdevs(record: VmRecord) -> list[str]:
    """QEMU's -netdev options."""
    return [value for option, value in arguments(record) if option == "-netdev"]


@pytest.mark.parametrize("kvm", [True, False])
def test_acceleration_decides_type_and_cpu(kvm: bool) -> None:
    found = spec(make.record(), replace(SESSION, kvm=kvm))
    expected = ("kvm", "host-passthrough") if kvm else ("qemu", "maximum")
    assert (found.type, found.cpu_mode) == expected


def test_a_system_has_libvirts_networks_and_no_qemu_arguments() -> None:
    record = make.record(nics=(make.nic(),), forwards=(Forward(8080, 80),))
    found = spec(record, replace(SESSION, session=False))
    assert [card.network for card in found.interfaces] == ["acme.lan"]
    assert found.qemu_args == ()


@pytest.mark.parametrize("profile", Profile)
def test_disks_are_on_the_profiles_bus_in_order(profile: Profile) -> None:
    record = make.record(profile=profile, disks=(make.disk("a"), make.disk("b", keep=True)))
    found = spec(record)
    devices = DEVICES[profile]
    assert [disk.target for disk in found.disks] == [
        f"{devices.disk_prefix}{letter}" for letter in "abc"
    ]
    assert {disk.bus for disk in found.disks} == {devices.disk_bus}
    assert [disk.boot for disk in found.disks] == [True, False, False]
    assert found.disks[0].backing == ("/pool/base.x.qcow2",)
    assert [disk.backing for disk in found.disks[1:]] == [(), ()]
    assert [disk.serial for disk in found.disks] == [None, "a", "b"]


def test_the_last_disk_of_a_profile_has_a_place() -> None:
    for profile, limit in profiles.DISK_LIMIT.items():
        disks = tuple(make.disk(f"d{n}") for n in range(limit - 1))
        assert len(spec(make.record(profile=profile, disks=disks)).disks) == limit


def test_a_serial_number_is_cut_where_the_bus_cuts_it() -> None:
    found = spec(make.record(disks=(make.disk("a" * 40),)))
    assert found.disks[1].serial == "a" * 20


# --- volumes ------------------------------------------------------------------------------------


def test_volumes_are_named_by_lab_vm_and_what_they_are() -> None:
    record = make.record()
    assert record.overlay == "overlay.acme.vm1.00000001.qcow2"
    assert vm_volumes.data_volume(record, make.disk(keep=True)) == "data.acme.vm1.data.qcow2"
    passing = vm_volumes.data_volume(record, make.disk())
    assert passing == "scratch.acme.vm1.data.00000001.qcow2"


@given(strategies.records(), strategies.records())
def test_no_two_vms_have_a_volume_in_common(one: VmRecord, two: VmRecord) -> None:
    from poclab.model.ownership import volumes

    if one.path != two.path:
        assert not volumes(one) & volumes(two)


# --- networks of a session ------------------------------------------------------------------------


def test_ports_are_forwarded_from_loopback_only() -> None:
    user = netdevs(make.record(forwards=(Forward(8080, 80), Forward(22000, 22))))[0].split(",")
    forwards = [option for option in user if option.startswith("hostfwd=")]
    assert forwards == ["hostfwd=tcp:127.0.0.1:8080-:80", "hostfwd=tcp:127.0.0.1:22000-:22"]


@pytest.mark.parametrize(
    ("modes", "restricted"),
    [
        ([], False),
        ([Mode.NAT], False),
        ([Mode.ISOLATED], True),
        ([Mode.ISOLATED, Mode.NAT], False),
        ([Mode.ISOLATED, Mode.ISOLATED], True),
    ],
)
def test_the_way_out_is_shut_when_all_networks_are_isolated(
    modes: list[Mode], restricted: bool
) -> None:
    nics = tuple(
        make.nic(f"n{n}", f"10.77.{n}.10/24", mac=f"52:54:00:00:00:{n:02x}", mode=mode)
        for n, mode in enumerate(modes)
    )
    assert ("restrict=on" in netdevs(make.record(nics=nics))[0].split(",")) is restricted


@given(strategies.records())
def test_no_segment_leaves_loopback(record: VmRecord) -> None:
    found = netdevs(record)
    assert len(found) == 1 + len(record.nics)
    for segment in found[1:]:
        options = segment.split(",")
        assert options[0] == "socket"
        assert "localaddr=127.0.0.1" in options
        (group,) = (item for item in options if item.startswith("mcast="))
        address, port = group.removeprefix("mcast=").split(":")
        assert IPv4Address(address) in IPv4Network("239.128.0.0/9")  # RFC 2365: scoped
        assert 32768 <= int(port) < 49152


@given(strategies.records())
def test_the_cards_of_a_session_have_a_slot_and_a_netdev_each(record: VmRecord) -> None:
    cards = [value.split(",") for option, value in arguments(record) if option == "-device"]
    places = [next(item for item in card if item.startswith("addr=")) for card in cards]
    assert len(set(places)) == len(cards) == 1 + len(record.nics)
    ids = {item.removeprefix("id=") for dev in netdevs(record) for item in dev.split(",")[:2]}
    for card in cards:
        assert card[0] == DEVICES[record.profile].nic_device
        assert card[1].removeprefix("netdev=") in ids


def test_the_last_card_lies_below_the_chipset() -> None:
    assert netdef.FIRST_SLOT + netdef.SESSION_NIC_LIMIT < 0x1B


def test_owners_labs_and_networks_have_segments_of_their_own() -> None:
    found = {
        netdef.segment(owner, lab, network)
        for owner in ("0", "1000", "1001")
        for lab in ("acme", "other")
        for network in ("lan", "dmz")
    }
    assert len(found) == 12
    assert netdef.segment("0", "acme", "lan") == netdef.segment("0", "acme", "lan")


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        ([], "10.0.2.0/24"),
        (["10.77.1.10/24"], "10.0.2.0/24"),
        (["10.0.2.10/24"], "172.31.254.0/24"),
        (["10.0.0.10/8"], "172.31.254.0/24"),
        (["10.0.0.10/8", "172.16.0.10/12"], "192.168.254.0/24"),
    ],
)
def test_the_user_network_keeps_out_of_the_labs_way(networks: list[str], expected: str) -> None:
    nics = [make.nic(f"n{n}", ip) for n, ip in enumerate(networks)]
    assert netdef.user_network(nics) == IPv4Network(expected)


# --- networks of a system -------------------------------------------------------------------------


@given(strategies.names, strategies.names, st.text("abc-", min_size=1, max_size=5))
def test_a_bridge_name_fits_the_kernel(lab: str, network: str, other: str) -> None:
    name = netdef.bridge_name(lab, network)
    assert len(name.encode()) <= 15
    assert name == netdef.bridge_name(lab, network)
    if other != network:
        assert name != netdef.bridge_name(lab, other)


def test_only_the_cards_of_a_network_are_reserved_there() -> None:
    vms = [
        make.record("a", nics=(make.nic(), make.nic("dmz", "10.77.2.10/24"))),
        make.record("b", nics=(make.nic("lan", None),)),
        make.record("c", nics=(make.nic("lan", "10.77.1.30/24", mac="52:54:00:00:00:03"),)),
    ]
    found = [(host.name, str(host.ip)) for host in netdef.reservations("lan", vms)]
    assert found == [("a", "10.77.1.10"), ("c", "10.77.1.30")]


def test_the_host_has_the_first_address() -> None:
    assert str(netdef.gateway(IPv4Network("10.77.0.0/16"))) == "10.77.0.1"


def test_the_backing_chain_is_every_base_top_first() -> None:
    found = domain_spec(
        make.record(),
        SESSION,
        uuid=None,
        bases=("base.top", "base.below"),
        path="/pool/{}".format,
        console_log=None,
    )
    assert found.disks[0].backing == ("/pool/base.top", "/pool/base.below")


def test_an_overlay_that_follows_another_has_its_data_disks() -> None:
    disk = make.disk("a")
    before = make.record(disks=(disk,))
    overlay = vm_volumes.overlay_volume(
        "acme", "vm1", vm_volumes.next_mark(before.overlay, "000000ff")
    )
    after = replace(before, overlay=overlay)
    assert overlay != before.overlay
    assert vm_volumes.data_volume(after, disk) == vm_volumes.data_volume(before, disk)
    again = vm_volumes.overlay_volume("acme", "vm1", vm_volumes.next_mark(overlay, "000000fe"))
    assert vm_volumes.data_volume(replace(after, overlay=again), disk) == vm_volumes.data_volume(
        before, disk
    )
    other = replace(before, overlay=vm_volumes.overlay_volume("acme", "vm1", "00000002"))
    assert vm_volumes.data_volume(other, disk) != vm_volumes.data_volume(before, disk)


def test_what_stands_in_has_no_tpm_and_leads_back() -> None:
    uuid = "8b3c9d20-0000-4000-8000-00000000000e"
    whole = replace(spec(make.record(tpm=True)), uuid=uuid)
    found = domain.stand_in(whole)
    assert whole.tpm == "tpm-crb"
    assert found.uuid is not None
    assert (found.name, found.uuid != uuid) == (f"{whole.name}{domain.STAND_IN}", True)
    assert domain.stood_in_for(found.uuid) == uuid
    assert replace(found, name=whole.name, uuid=uuid, tpm=whole.tpm) == whole


@given(st.uuids())
def test_who_stands_in_is_known_by_its_uuid(uuid: UUID) -> None:
    other = domain.stood_in_for(str(uuid))
    assert other != str(uuid)
    assert domain.stood_in_for(other) == str(uuid)
