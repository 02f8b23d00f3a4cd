"""Domain and network XML: whole files, each accepted by libvirt's own schema and parser.

`POCLAB_REGENERATE=1 pytest tests/unit/definitions/test_xml.py` writes the files in
tests/golden anew; look at the difference before it is committed. Nothing else writes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import fromstring

import libvirt
import pytest

from poclab.definitions import metadata
from poclab.definitions.domain import domain_spec
from poclab.definitions.network import network_spec
from poclab.definitions.profiles import HostTraits
from poclab.definitions.xml import domain_xml, host_xml, network_xml
from poclab.model.lab import Forward, Mode, Ready
from poclab.model.record import HostEntry
from poclab.model.version import Profile
from tests.support import make

GOLDEN = Path(__file__).parents[2] / "golden"
UUID = "5f0c1d52-5d0a-4f0b-9d5e-3a1f1f6f0c11"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE poclab acme"

# A host of libvirt's test driver, empty; it lives in this process alone and starts nothing.
TEST_HOST = """\
<node>
  <cpu>
    <mhz>1000</mhz><model>x86_64</model><active>4</active>
    <nodes>1</nodes><sockets>1</sockets><cores>4</cores><threads>1</threads>
  </cpu>
  <memory>8000000</memory>
</node>
"""

LINUX = make.record(
    nics=(make.nic(), make.nic("dmz", "10.77.2.10/24", mac="52:54:00:00:00:02")),
    disks=(make.disk("data", keep=True), make.disk("a-name-of-more-than-20-characters")),
    forwards=(Forward(8080, 80), Forward(22000, 22)),
    after=("db",),
    ready=Ready("tcp", 80, 120),
    ssh_key=KEY,
    disk_size=10 * make.GIB,
)
ISOLATED = replace(LINUX, nics=(make.nic(mode=Mode.ISOLATED),), disks=(), disk_size=None)
WINDOWS = replace(
    LINUX, profile=Profile.WINDOWS, user="Administrator", ready=Ready("agent"), tpm=True
)
LEGACY = replace(LINUX, profile=Profile.LEGACY, memory=256 * 1024**2, cpus=1, disks=(make.disk(),))
BARE = make.record("bare")

SYSTEM_KVM = HostTraits(session=False, kvm=True, owner="0")
SYSTEM = HostTraits(session=False, kvm=False, owner="0")
SESSION = HostTraits(session=True, kvm=False, owner="1000")
SESSION_KVM = HostTraits(session=True, kvm=True, owner="1000")

DOMAINS = {
    "linux-system-kvm": (LINUX, SYSTEM_KVM),
    "linux-system-tcg": (LINUX, SYSTEM),
    "linux-session-kvm": (LINUX, SESSION_KVM),
    "linux-session-tcg": (LINUX, SESSION),
    "linux-session-isolated": (ISOLATED, SESSION),
    "linux-system-bare": (BARE, SYSTEM),
    "linux-session-bare": (BARE, SESSION),
    "windows-system-kvm": (WINDOWS, SYSTEM_KVM),
    "windows-session-tcg": (WINDOWS, SESSION),
    "legacy-system-tcg": (LEGACY, SYSTEM),
    "legacy-session-kvm": (LEGACY, SESSION_KVM),
}

HOSTS = (
    HostEntry("52:54:00:00:00:01", "db", make.address("10.77.1.10")),
    HostEntry("52:54:00:00:00:02", "vm1", make.address("10.77.1.11")),
)
NETWORKS = {
    "network-nat": (make.network_record(), HOSTS),
    "network-isolated": (make.network_record("dmz", "10.77.128.0/17", mode=Mode.ISOLATED), ()),
}


def domain(name: str) -> str:
    """The XML of one of the domains above."""
    record, traits = DOMAINS[name]
    return domain_xml(
        domain_spec(
            record,
            traits,
            uuid=UUID,
            bases=("base.0123.qcow2",),
            path=lambda volume: f"/pool/{volume}",
            console_log=f"/log/{record.domain}.log",
            oem_strings=(f"io.systemd.credential:x={record.name}",) if record.ssh_key else (),
        )
    )


def network(name: str) -> str:
    """The XML of one of the networks above."""
    return network_xml(network_spec(*NETWORKS[name]))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[libvirt.virConnect]:
    """libvirt's test driver with an empty host."""
    file = tmp_path / "host.xml"
    file.write_text(TEST_HOST)
    connection = libvirt.open(f"test://{file}")
    yield connection
    connection.close()


def compare(name: str, text: str) -> None:
    """Compare with the golden file, or write it anew when that was asked for."""
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("POCLAB_REGENERATE") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs; POCLAB_REGENERATE=1 writes it anew"


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_is_what_the_golden_file_says(name: str) -> None:
    compare(name, domain(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_what_the_golden_file_says(name: str) -> None:
    compare(name, network(name))


def test_there_is_no_golden_file_without_a_test() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {*DOMAINS, *NETWORKS}


@pytest.mark.parametrize("name", DOMAINS)
def test_libvirt_validates_a_domain_and_keeps_its_record(
    name: str, host: libvirt.virConnect
) -> None:
    record, _ = DOMAINS[name]
    found = host.defineXMLFlags(domain(name), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    assert (found.name(), found.UUIDString()) == (record.domain, UUID)
    element = metadata.find(found.XMLDesc(0), "vm")
    assert element is not None
    assert metadata.vm_record(element) == record
    text = found.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, metadata.NAMESPACE, 0)
    assert metadata.vm_record(fromstring(text)) == record


def test_a_record_written_over_another_comes_back(host: libvirt.virConnect) -> None:
    found = host.defineXMLFlags(domain("linux-system-tcg"), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    changed = replace(LINUX, fresh=True, after=(), user="demo")
    found.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        metadata.text(metadata.vm_element(changed)),
        metadata.PREFIX,
        metadata.NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    element = metadata.find(found.XMLDesc(0), "vm")
    assert element is not None
    assert metadata.vm_record(element) == changed


@pytest.mark.parametrize("name", NETWORKS)
def test_libvirt_validates_a_network_and_keeps_its_record(
    name: str, host: libvirt.virConnect
) -> None:
    record, hosts = NETWORKS[name]
    found = host.networkDefineXMLFlags(network(name), libvirt.VIR_NETWORK_DEFINE_VALIDATE)
    assert found.name() == record.libvirt_name
    assert len(found.bridgeName()) <= 15  # IFNAMSIZ - 1
    element = metadata.find(found.XMLDesc(0), "network")
    assert element is not None
    assert metadata.network_record(element) == record
    macs = [item.get("mac") for item in fromstring(found.XMLDesc(0)).iterfind("ip/dhcp/host")]
    assert macs == [host.mac for host in hosts]


def test_validation_is_worth_its_name(host: libvirt.virConnect) -> None:
    """Were the flag or the schema missing, the tests above would prove nothing."""
    wrong = domain("linux-system-bare").replace("<apic />", "<apic /><not-known-to-libvirt />")
    with pytest.raises(libvirt.libvirtError, match="validate"):
        host.defineXMLFlags(wrong, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)


def test_a_reservation_alone_is_the_same_as_in_the_network() -> None:
    for entry in HOSTS:
        assert host_xml(entry) in network("network-nat")


def test_markup_in_values_stays_a_value() -> None:
    nasty = 'a"]]><x/>&'
    record = replace(BARE, history=(replace(BARE.history[0], by=nasty),))
    spec = domain_spec(
        record, SYSTEM, uuid=None, bases=("b",), path=lambda name: f"/{nasty}/{name}",
        console_log=nasty, oem_strings=(nasty,),
    )  # fmt: skip
    root = fromstring(domain_xml(spec))
    assert root.findtext("sysinfo/oemStrings/entry") == nasty
    log, source = root.find("devices/serial/log"), root.find("devices/disk/source")
    assert log is not None
    assert source is not None
    assert log.get("file") == nasty
    assert source.get("file") == f"/{nasty}/{record.overlay}"
    assert root.find(".//x") is None
